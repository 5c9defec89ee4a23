"""What a recipe leaves open: worked out from the model, the checkpoint and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from paddock.engines.protocol import Capabilities
from paddock.graph import DType
from paddock.models.config import ConfigError
from paddock.recipes.errors import RecipeError
from paddock.recipes.machine import GIB, Machine
from paddock.recipes.schema import Recipe
from paddock.runtime.encoders.encoder_loop import EncoderLimits
from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.weights.errors import WeightError
from paddock.weights.json_file import read_json

SEQUENCES_PER_CORE = 8
"""Decoding is bound by memory until a few sequences share each reading of the weights."""
TOKENS_PER_CORE = 256
"""Prompt tokens a core takes in in some tenths of a second, for which the others wait."""
QUEUED_PER_SEQUENCE = 64
SHORTEST = 128  # tokens: with room for less a model is of no use
TOKEN_BYTES = 64  # of a queued prompt: a Python integer, its place in a list, its hash
NEVER = -100.0
"""What is added to the logit of a token that a checkpoint says never to write."""
LEFT_FREE = 0.1
"""Of all memory, which is left to others whatever an engine could use."""
LEFT_FREE_AT_LEAST = 256 << 20  # bytes
GENERATION = "generation_config.json"
CACHE_SHARE = 0.5
"""Of the memory that is left then, for the cache: other programs want more now and then, too."""


@dataclass(frozen=True)
class ContextLength:
    """Tokens of the longest sequence, and why."""

    tokens: int
    reason: str


def choose_dtype(
    recipe: Recipe, config_json: Mapping[str, Any], machine: Machine, engine: Capabilities
) -> DType:
    """The type of activations and unquantized weights.

    bf16 halves what f32 reads and writes, where the checkpoint has no more bits and the cores
    multiply it by themselves; f32 is exact for every checkpoint and fast everywhere else. A GPU
    multiplies what the checkpoint has.
    """
    if recipe.dtype != "auto":
        return DType(recipe.dtype)
    stored = str(config_json.get("dtype") or config_json.get("torch_dtype") or "")
    if engine.gpu:
        return {"bfloat16": DType.BF16, "float16": DType.F16}.get(stored, DType.F32)
    if stored == "bfloat16" and machine.has_bf16 and DType.BF16 in engine.dtypes:
        return DType.BF16
    return DType.F32


def context_length(recipe: Recipe, config: Any) -> ContextLength:
    """The longest sequence that the graph is made for.

    It does not depend on the machine, so that a build is the same everywhere; what the memory
    holds may bound sequences further when the engine starts.
    """
    trained = getattr(config, "longest", None)
    asked = recipe.limits.max_context
    if asked is None:
        if not isinstance(trained, int):
            raise RecipeError(
                "the model's config.json says no max_position_embeddings; set limits.max_context"
            )
        return ContextLength(trained, "the model's max_position_embeddings")
    if isinstance(trained, int) and asked > trained * _reach(config):
        raise RecipeError(
            f"limits.max_context is {asked}, the model was trained for {trained} tokens"
            " (max_position_embeddings); beyond that it writes nonsense"
        )
    return ContextLength(asked, "limits.max_context")


def _reach(config: Any) -> float:
    """How many times max_position_embeddings a sequence may be: dynamic NTK is made for more."""
    if not hasattr(config, "scaling"):
        return 1.0
    scaling = config.scaling()
    return float(scaling.factor or 1.0) if scaling.rope_type == "dynamic" else 1.0


def sampling_defaults(recipe: Recipe, checkpoint: Path) -> dict[str, Any]:
    """Fields of `SamplingParams`: generation_config.json's, replaced by the recipe's own.

    As transformers reads that file: no `do_sample` and nothing about sampling is greedy.
    """
    found = json_object(checkpoint / GENERATION)
    taken: dict[str, Any] = {}
    for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"):
        if found.get(name) is not None:
            taken[name] = found[name]
    shapes = {"temperature", "top_k", "top_p", "min_p", "typical_p"} & taken.keys()
    if found.get("do_sample") is False or ("do_sample" not in found and not shapes):
        taken = {k: v for k, v in taken.items() if k not in shapes} | {"temperature": 0.0}
    if isinstance(found.get("max_new_tokens"), int):
        taken["max_tokens"] = found["max_new_tokens"]
    never = [*_token_ids(found, "suppress_tokens"), *_single_bad_words(found)]
    if never:
        taken["logit_bias"] = dict.fromkeys(never, NEVER)
    taken |= recipe.sampling.given()
    try:
        SamplingParams(**taken)
    except RequestError as error:
        raise ConfigError(
            f"{checkpoint / 'generation_config.json'}: {error}; replace it in the recipe's"
            " `sampling`"
        ) from None
    return taken


def _token_ids(found: Mapping[str, Any], name: str) -> list[int]:
    given = found.get(name)
    listed = given if isinstance(given, list) else []
    return [token for token in listed if type(token) is int and token >= 0]


def _single_bad_words(found: Mapping[str, Any]) -> list[int]:
    """`bad_words_ids` of one token each, e.g. Marian's padding, whose logit nothing learned."""
    given = found.get("bad_words_ids")
    words = given if isinstance(given, list) else []
    return [
        word[0]
        for word in words
        if isinstance(word, list) and len(word) == 1 and type(word[0]) is int and word[0] >= 0
    ]


def answer_begins(checkpoint: Path, language: int | None = None) -> list[int]:
    """The tokens with which an encoder-decoder's answers begin, as generation_config.json says.

    Older checkpoints say it in config.json. `language` is what the recipe forces first. Raises
    `ConfigError`.
    """
    files = (checkpoint / GENERATION, checkpoint / "config.json")
    said = [json_object(file) for file in files]

    def token_id(name: str) -> int | None:
        found = next((config[name] for config in said if config.get(name) is not None), None)
        if found is None or (type(found) is int and found >= 0):
            return found
        raise ConfigError(f"{checkpoint}: {name} is {str(found)[:80]!r}, expected a token id")

    first = token_id("decoder_start_token_id")
    if first is None:
        first = token_id("bos_token_id")
    if first is None:
        raise ConfigError(
            f"{files[0]}: it says no decoder_start_token_id, with which every answer begins; add it"
        )
    forced = token_id("forced_bos_token_id") if language is None else language
    begins = [first] if forced is None else [first, forced]
    return begins + _speech_tokens(said[0], known=language is not None)


def _speech_tokens(generation: Mapping[str, Any], *, known: bool) -> list[int]:
    """Whisper's tokens for the language, unless `known`, the task, and no times in the text."""
    tasks, languages = (generation.get(name) for name in ("task_to_id", "lang_to_id"))
    task = tasks.get("transcribe") if isinstance(tasks, dict) else None
    language = languages.get("<|en|>") if isinstance(languages, dict) and not known else None
    found = [language, task, generation.get("no_timestamps_token_id")]
    return [token for token in found if type(token) is int and token >= 0]


def derive_limits(
    recipe: Recipe,
    machine: Machine,
    *,
    max_context: int,
    block_size: int,
    block_bytes: int,
    unclaimed_bytes: int,
    state_bytes: int = 0,
    max_source: int = 0,
    most_sequences: int | None = None,
    most_tokens_per_step: int | None = None,
    cache_share: float = CACHE_SHARE,
) -> Limits:
    """The engine loop's limits. `machine` is measured after the engine was opened; `most_...` is
    what an engine was compiled for that was compiled for sizes.

    `unclaimed_bytes` is what the engine may still take for itself at its first steps, `state_bytes`
    what layers keep of a sequence beside its blocks, `max_source` the places of the longest source
    of an encoder-decoder. The cache gets what its sequences can use, out of the memory that is free
    less that and a tenth of all: a guess that is too small costs speed, one that is too large the
    process. Raises `RecipeError` where not even one short sequence fits.
    """
    asked = recipe.limits
    sequences = asked.max_sequences or most_sequences
    sequences = sequences or min(SEQUENCES_PER_CORE * machine.cores, 256)
    room = _cache_room(recipe, machine, unclaimed_bytes, cache_share)
    if state_bytes and asked.max_sequences is None:
        sequences = max(min(sequences, room // 2 // state_bytes), 1)
    per_step = asked.max_tokens_per_step or most_tokens_per_step
    per_step = per_step or max(TOKENS_PER_CORE * machine.cores, sequences)
    for key, value, most in (
        ("max_sequences", sequences, most_sequences),
        ("max_tokens_per_step", per_step, most_tokens_per_step),
    ):
        if most is not None and value > most:
            raise RecipeError(
                f"limits.{key} is {value}, the engine was built for {most}; ask for less, or build"
                f" it again with limits.{key}={value}"
            )
    if per_step < sequences:
        raise RecipeError(
            f"limits.max_tokens_per_step is {per_step}, limits.max_sequences {sequences}: every"
            " sequence takes a token in each step, so the first must not be less"
        )
    sources = ceil(max_source / block_size)
    blocks = _cache_blocks(
        recipe,
        machine,
        # One block more for each: the last one of a sequence is never quite full.
        usable=sequences * (ceil(max_context / block_size) + 1 + sources),
        fewest=ceil(min(max_context, SHORTEST) / block_size) + 1 + sources,
        block_bytes=block_bytes,
        unclaimed_bytes=unclaimed_bytes,
        states_bytes=sequences * state_bytes,
        room=room,
    )
    context = min(max_context, (blocks - 1 - sources) * block_size)
    in_memory = max(machine.memory_bytes // 64 // TOKEN_BYTES, context)
    return Limits(
        max_sequences=sequences,
        max_tokens_per_step=per_step,
        max_context=context,
        cache_blocks=blocks,
        max_queued_requests=asked.max_queued_requests or QUEUED_PER_SEQUENCE * sequences,
        max_queued_tokens=asked.max_queued_tokens or in_memory,
        prefill_chunk=asked.prefill_chunk,
        max_prompt_logit_rows=asked.max_prompt_logit_rows,
        aging_s=asked.aging_s,
    )


def encoder_limits(
    recipe: Recipe, machine: Machine, *, max_context: int, block_size: int, block_bytes: int
) -> EncoderLimits:
    """The encoder loop's limits. What a causal model caches in a step must fit into memory.

    `block_bytes` is 0 where nothing is cached. Raises `RecipeError` where a short text would not
    fit.
    """
    asked = recipe.limits
    sequences = asked.max_sequences or min(SEQUENCES_PER_CORE * machine.cores, 256)
    per_step = asked.max_tokens_per_step or TOKENS_PER_CORE * machine.cores
    if block_bytes:
        room = int(machine.free_bytes * CACHE_SHARE) // block_bytes - sequences
        fits = max(room, 0) * block_size
        if fits < min(max_context, SHORTEST):
            raise RecipeError(
                f"no memory for a step: {machine.free_bytes / GIB:.2f} GiB are free, and"
                f" {min(max_context, SHORTEST)} tokens take more than half of it; choose a smaller"
                " model"
            )
        max_context, per_step = min(max_context, fits), min(per_step, fits)
    return EncoderLimits(
        max_context=max_context,
        max_tokens_per_step=per_step,
        max_sequences=sequences,
        max_queued_sequences=asked.max_queued_requests or QUEUED_PER_SEQUENCE * sequences,
    )


def _cache_blocks(
    recipe: Recipe,
    machine: Machine,
    *,
    usable: int,
    fewest: int,
    block_bytes: int,
    unclaimed_bytes: int,
    states_bytes: int,
    room: int,
) -> int:
    """Blocks, of `room` bytes less those of the states of all sequences."""
    asked, free = recipe.limits.cache_gib, machine.free_bytes
    size = f"{block_bytes / 2**20:.2f} MiB"
    if asked is not None:
        if asked * GIB > free:
            raise RecipeError(
                f"limits.cache_gib is {asked:g}, but {free / GIB:.2f} GiB of memory are free; ask"
                " for less, or leave it out"
            )
        if room < fewest * block_bytes + states_bytes:
            raise RecipeError(
                f"limits.cache_gib is {asked:g}, which is less than {fewest} blocks of {size}"
                f"{_beside(states_bytes)}; a short conversation takes these,"
                f" {(fewest * block_bytes + states_bytes) / GIB:.3f} GiB"
            )
    elif room < fewest * block_bytes + states_bytes:
        left = _left_free(machine)
        raise RecipeError(
            f"no memory for a cache: {free / GIB:.2f} GiB are free, of which"
            f" {unclaimed_bytes / GIB:.2f} are the engine's and {left / GIB:.2f} other programs';"
            f" of the rest a half must hold {fewest} blocks of {size}{_beside(states_bytes)}."
            " Choose a smaller model,"
            " quant=int8 or engine.cache_dtype=u8, or say limits.cache_gib"
        )
    return min((room - states_bytes) // block_bytes, usable) if block_bytes else usable


def _cache_room(recipe: Recipe, machine: Machine, unclaimed_bytes: int, share: float) -> int:
    """Bytes for blocks and states: what is asked for, or a share of what would be free."""
    if recipe.limits.cache_gib is not None:
        return int(recipe.limits.cache_gib * GIB)
    return int((machine.free_bytes - unclaimed_bytes - _left_free(machine)) * share)


def _left_free(machine: Machine) -> int:
    return max(LEFT_FREE_AT_LEAST, int(LEFT_FREE * machine.memory_bytes))


def _beside(states_bytes: int) -> str:
    return f" beside {states_bytes / GIB:.3f} GiB of sequences' states" if states_bytes else ""


def json_object(file: Path) -> dict[str, Any]:
    """Its contents; none where there is no such file. Raises `ConfigError`."""
    if not file.exists():
        return {}
    try:
        found = read_json(file)
    except WeightError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: expected an object, found {type(found).__name__}")
    return found
