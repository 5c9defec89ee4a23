"""The whole product, in order: each arrow of the design is one function.

fetch             checkpoint= -> a folder with safetensors, config.json and a tokenizer
read_architecture config.json -> a class of `paddock.models` and its sizes
trace_ranks       modules -> the graph of a step, as each rank computes it
prove_binding     the checkpoint's tensors -> the model's slots, before any data is read
build             all of these -> an engine folder and bound weights, from the cache or anew
open_engine       an engine folder -> a session with its weights
start             a session -> a loop that takes requests from any thread
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import paddock
from paddock.engines.protocol import CompilingKind, EngineKind, RankEngine, Session
from paddock.graph import DType
from paddock.graph.ops import Communicator
from paddock.models import registry
from paddock.models.config import ConfigError, Task
from paddock.models.registry import Architecture
from paddock.models.vision_language import VisionLanguageConfig
from paddock.recipes import engine_kinds, ranks
from paddock.recipes.build_cache import BuildCache, home
from paddock.recipes.builder import Builder, Done, Estimate, rank_folder, timed
from paddock.recipes.derive import (
    CACHE_SHARE,
    GENERATION,
    ContextLength,
    answer_begins,
    choose_dtype,
    context_length,
    derive_limits,
    encoder_limits,
    json_object,
    sampling_defaults,
)
from paddock.recipes.errors import RecipeError
from paddock.recipes.machine import Machine, measure
from paddock.recipes.progress import SILENT, Progress
from paddock.recipes.schema import Recipe
from paddock.recipes.shelf import MANIFEST, Entry
from paddock.recipes.tracing import Traced, trace_ranks, vocab_size
from paddock.runtime.distributed.front import RankGroup
from paddock.runtime.encoders.encoder import Classifier, Encoder
from paddock.runtime.encoders.encoder_loop import EncoderLoop
from paddock.runtime.encoders.sentence_files import MODULES, activation_of, read_sentence_files
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.images.sight import Sight
from paddock.runtime.loop import Loop
from paddock.runtime.replicas import Replicas
from paddock.runtime.sampling.grammar import GuidanceGrammars
from paddock.runtime.speech.listening import Hearing
from paddock.runtime.speech.speech_tokens import read_speech_tokens
from paddock.runtime.text.chat_template import ChatTemplates
from paddock.runtime.text.tokenizer import Tokenizer
from paddock.weights import Binding, Checkpoint, Ignore, prove
from paddock.weights.bound import BoundWeights
from paddock.weights.hub import LocalCheckpoint
from paddock.weights.hub import fetch as fetch_checkpoint

DEMO = Path(paddock.__file__).resolve().parent / "demo"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine folder in the build cache, and its bound weights."""

    folder: Path
    manifest: Mapping[str, Any]
    weights_folders: tuple[Path, ...]
    """Of each rank's bound weights."""
    checkpoint: LocalCheckpoint
    architecture: Architecture
    context: ContextLength
    cached: bool
    """It was there already."""
    reasons: list[str]
    """Why it was built: what differs from the nearest engine of this recipe. Empty where cached."""
    timings: dict[str, float]
    """Seconds of each stage."""

    @property
    def weights_folder(self) -> Path:
        """Of the first rank's bound weights."""
        return self.weights_folders[0]


@dataclass
class Running:
    """A started recipe. `close()` ends the loop and gives the memory back."""

    recipe: Recipe
    built: BuiltEngine
    sessions: tuple[Session, ...]
    """Of each replica."""
    tokenizer: Tokenizer
    serving: Loop | Encoder
    """What takes requests: see `loop` and `encoder`."""
    sampling_defaults: Mapping[str, Any]
    """Fields of `SamplingParams` for requests that leave them out."""
    timings: dict[str, float]
    """Seconds of each stage, those of the build included."""
    sight: Sight | None = None
    """Of a model that sees: what makes prompts of conversations with images."""
    hearing: Hearing | None = None
    """Of a model that hears, whose sounds `LLM.transcribe` and the server take."""

    @property
    def session(self) -> Session:
        """Of the first replica."""
        return self.sessions[0]

    @property
    def task(self) -> Task:
        """What the model is asked for."""
        return self.built.architecture.task

    @property
    def loop(self) -> Loop:
        """Of a model that writes text. Raises `RecipeError` of any other."""
        if isinstance(self.serving, Encoder):
            raise RecipeError(wrong_task(self.recipe, self.task, "generate"))
        return self.serving

    @property
    def encoder(self) -> Encoder:
        """Of a model that gives vectors or labels. Raises `RecipeError` of any other."""
        if not isinstance(self.serving, Encoder):
            raise RecipeError(wrong_task(self.recipe, self.task, "embed"))
        return self.serving

    def close(self) -> None:
        """Unfinished requests are cancelled."""
        if isinstance(self.serving, Encoder):
            self.serving.close()
        else:
            self.serving.close(drain=False)


def fetch(recipe: Recipe, *, progress: Progress = SILENT) -> LocalCheckpoint:
    """The checkpoint on this machine; a hub repository is downloaded where it is not there yet."""
    if recipe.checkpoint == "demo":
        return LocalCheckpoint(DEMO)
    found = fetch_checkpoint(
        recipe.checkpoint,
        revision=recipe.revision,
        progress=lambda done, total: progress.update("download", done, total, "bytes"),
        check=lambda config: check_config(recipe, config),
    )
    return LocalCheckpoint(found.folder.absolute(), found.repo, found.commit)


def read_architecture(recipe: Recipe, checkpoint: LocalCheckpoint) -> Architecture:
    """The class and the sizes that config.json names, for the recipe's task.

    A model that writes text is pooled where the checkpoint has sentence-transformers' files, or
    the recipe asks for vectors. Raises `ConfigError` and `RecipeError`.
    """
    found = _architecture(recipe, config_json(checkpoint))
    if isinstance(found.config, VisionLanguageConfig) and not _has(checkpoint, found.config.tower):
        found = replace(found, config=found.config.blind())
    asked = recipe.task
    if found.task == "generate" and (
        asked == "embed" or (asked == "auto" and (checkpoint.folder / MODULES).is_file())
    ):
        if found.image_form is not None:
            raise RecipeError(f"{found.name} sees images, and is not pooled; use task=generate")
        found = replace(found, pooled=True)
    if asked not in ("auto", found.task):
        raise RecipeError(wrong_task(recipe, found.task, asked))
    if found.task != "generate" and recipe.mesh.dp > 1:
        raise RecipeError(
            f"mesh.dp={recipe.mesh.dp}: only models that write text run as replicas behind one"
            " endpoint; use mesh.dp=1"
        )
    return found


def _has(checkpoint: LocalCheckpoint, word: str) -> bool:
    """Whether a tensor's name has the word in it."""
    return any(word in name for name in Checkpoint.open(checkpoint.folder).tensors)


def wrong_task(recipe: Recipe, task: Task, asked: str) -> str:
    """What is said where a model of one task is asked for another's."""
    does = {"generate": "writes text", "embed": "gives vectors", "classify": "gives labels"}
    command = {"generate": "generate", "embed": "embed", "classify": "classify"}[task]
    name = recipe.checkpoint if recipe.name == "auto" else recipe.name
    return f"{name} {does[task]} (task {task}), it cannot {asked}; use `paddock {command} {name}`"


def prove_binding(
    traced: Traced, checkpoint: LocalCheckpoint, ranks: Sequence[Traced] = ()
) -> Binding:
    """What fills each slot of a rank, from headers alone. Raises `WeightError`.

    `ranks`: the model as all ranks of its mesh compute it, in their order; none for one alone.
    """
    rules = importlib.import_module(traced.architecture.weight_map).HUGGING_FACE
    return prove(
        dict(traced.module.named_parameters()),
        Checkpoint.open(checkpoint.folder).tensors,
        (*rules, *(Ignore(name) for name in traced.architecture.heads())),
        traced.mesh,
        tied=bool(getattr(traced.architecture.config, "tie_word_embeddings", False)),
        live=[stage.alive for stage in (ranks or [traced])[:: traced.mesh.tp]],
    )


def build(recipe: Recipe, *, progress: Progress = SILENT, rebuild: bool = False) -> BuiltEngine:
    """The engine of a recipe: found in the cache, or built, checked and published there.

    Raises the `PaddockError` of the room that found something wrong; nothing is left of a build
    that did not succeed.
    """
    builder, timings = _builder(recipe, progress)
    return _built(builder, builder.obtain(rebuild=rebuild), timings)


def estimate(recipe: Recipe, *, progress: Progress = SILENT) -> Estimate:
    """What `build` will take, as if nothing were there yet. Raises what `build` raises of a
    checkpoint that does not fit."""
    builder, _ = _builder(recipe, progress)
    return builder.estimate()


def refit(donor: Entry, checkpoint: str, *, progress: Progress = SILENT) -> BuiltEngine:
    """What `donor` compiled, with the weights of another checkpoint of the same model.

    The binding of the new weights is proved first, and the result is checked as a build is. It is
    kept beside the donor, as if its recipe had been built with `checkpoint`. Raises `RecipeError`
    and what `build` raises.
    """
    try:
        settings = dict(donor.manifest["settings"]) | {"checkpoint": checkpoint, "revision": None}
        recipe = Recipe.model_validate(settings)
    except (KeyError, TypeError, ValueError):
        raise RecipeError(
            f"{donor.folder}: its {MANIFEST} does not say by which settings it was built; build it"
            f" again: paddock build {donor.manifest.get('recipe', 'NAME')}"
        ) from None
    builder, timings = _builder(recipe, progress)
    return _built(builder, builder.refit(donor), timings)


def _builder(recipe: Recipe, progress: Progress) -> tuple[Builder, dict[str, float]]:
    """What builds a recipe, and the seconds of each stage so far and to come."""
    timings: dict[str, float] = {}
    kind = engine_kinds.load(recipe.engine.name)
    with timed(timings, "fetch"):
        checkpoint = fetch(recipe, progress=progress)
    with timed(timings, "trace"):
        dtype = compute_type(recipe, config_json(checkpoint))
        traced = trace_ranks(recipe, read_architecture(recipe, checkpoint), dtype)
        cache = BuildCache()
    with timed(timings, "identify"):
        builder = Builder(
            recipe,
            kind,
            checkpoint,
            traced,
            cache,
            prove=lambda rank: prove_binding(traced[rank], checkpoint, traced),
            options=build_options(recipe) | build_bounds(recipe, kind, traced[0]),
            progress=progress,
            timings=timings,
        )
    return builder, timings


def _built(builder: Builder, done: Done, timings: dict[str, float]) -> BuiltEngine:
    return BuiltEngine(
        folder=done.engine.folder,
        manifest=done.engine.manifest,
        weights_folders=tuple(entry.folder for entry in done.weights),
        checkpoint=builder.checkpoint,
        architecture=builder.traced.architecture,
        context=builder.traced.context,
        cached=not done.made,
        reasons=done.reasons,
        timings=timings,
    )


def open_engine(built: BuiltEngine, recipe: Recipe, group: RankGroup | None = None) -> Session:
    """A session of a built engine, its weights mapped, on the ranks of `group` where there are
    several. Raises `BuildError` or `WeightError`."""
    if group is not None:
        return ranks.open_engine(group, built, recipe)
    return open_rank(built.folder, built.weights_folders[0], built.checkpoint, recipe)


def open_rank(
    folder: Path,
    weights_folder: Path,
    checkpoint: LocalCheckpoint,
    recipe: Recipe,
    rank: int = 0,
    communicator: Communicator | None = None,
    *,
    neighbours: int = 1,
) -> Session:
    """One rank's session, of `neighbours` ranks on this machine that share its cores."""
    kind = engine_kinds.load(recipe.engine.name)
    place = rank_folder(rank)
    weights = BoundWeights.open(weights_folder / place, checkpoint.folder)
    options = engine_options(recipe, neighbours=neighbours)
    options["machine"] = home() / "machine" / recipe.engine.name  # what engines find out about it
    engine = kind.load(folder / place)
    if communicator is None:
        return engine.open(weights, options)
    options["own_gpu"] = True  # a rank is a process, and has a GPU to itself where it needs one
    return cast(RankEngine, engine).open(weights, options, communicator)


def start(
    recipe: Recipe, *, progress: Progress = SILENT, tokenizer: Tokenizer | None = None
) -> Running:
    """Build or find the engine, open it, and run its loop. Raises a `PaddockError`.

    `tokenizer`: what `read_tokenizer` gave, where prompts were looked at before.
    """
    groups = ranks.start(recipe)
    try:
        built = build(recipe, progress=progress)
        timings = dict(built.timings)
        writes = built.architecture.task == "generate"
        with timed(timings, "tokenizer"):
            tokenizer = tokenizer or read_tokenizer(recipe, built.checkpoint, writes=writes)
            defaults = sampling_defaults(recipe, built.checkpoint.folder) if writes else {}
    except BaseException:
        for group in groups:
            group.close()
        raise
    with timed(timings, "open"):
        sessions = _open_replicas(recipe, built, groups)
        try:
            if writes:
                serving: Loop | Encoder = _start_loop(recipe, built, sessions, tokenizer, progress)
            else:
                serving = _start_encoder(recipe, built, sessions[0], tokenizer)
        except BaseException:
            for session in sessions:
                session.close()
            raise
    sight = sight_of(built.architecture, built.checkpoint, tokenizer)
    hearing = None
    if not isinstance(serving, Encoder):
        hearing = _hearing_of(recipe, built, serving, tokenizer, defaults)
    return Running(
        recipe, built, tuple(sessions), tokenizer, serving, defaults, timings, sight, hearing
    )


def _hearing_of(
    recipe: Recipe,
    built: BuiltEngine,
    loop: Loop,
    tokenizer: Tokenizer,
    defaults: Mapping[str, Any],
) -> Hearing | None:
    """What a model that hears is asked with. Raises `RecipeError` for a language it has not."""
    heard = built.architecture.heard
    if heard is None:
        return None
    folder = built.checkpoint.folder
    tokens = read_speech_tokens(
        json_object(folder / GENERATION), answer_begins(folder)[0], tokenizer
    )
    if tokens is None:
        return None
    places, size = heard
    language = recipe.answer_language
    return Hearing(
        tokens,
        tokenizer,
        places=places,
        bands=(size // 3 - 1) // 3,
        context=loop.limits.max_context,
        defaults=defaults,
        language=None if language is None else tokens.language(language.strip("<|>")),
    )


def _open_replicas(
    recipe: Recipe, built: BuiltEngine, groups: Sequence[RankGroup]
) -> list[Session]:
    """A session of each replica, on its group of ranks or in this process; all of them or none."""
    sessions: list[Session] = []
    try:
        for replica in range(recipe.mesh.dp):
            group = groups[replica] if groups else None
            sessions.append(open_engine(built, recipe, group))
    except BaseException:
        for session in sessions:
            session.close()
        for group in groups[len(sessions) :]:
            group.close()
        raise
    return sessions


def _start_loop(
    recipe: Recipe,
    built: BuiltEngine,
    sessions: Sequence[Session],
    tokenizer: Tokenizer,
    progress: Progress,
) -> Loop:
    session, count = sessions[0], len(sessions)
    machine, on_gpu = _where_it_computes(session)
    machine = replace(  # to each replica its share
        machine,
        free_bytes=machine.free_bytes // count,
        memory_bytes=machine.memory_bytes // count,
        cores=max(machine.cores // count, 1),
    )
    limits = derive_limits(
        recipe,
        machine,
        cache_share=1.0 if on_gpu else CACHE_SHARE,
        max_context=built.context.tokens,
        block_size=session.block_size,
        block_bytes=session.block_bytes,
        state_bytes=session.state_bytes,
        max_source=_longest_source(built),
        # The mapped weights count as free memory until they are read, and an engine may
        # repack them at its first step.
        unclaimed_bytes=int(getattr(session, "step_bytes", built.manifest["weight_bytes"])),
        most_sequences=getattr(session, "max_sequences", None),
        most_tokens_per_step=getattr(session, "max_tokens_per_step", None),
    )
    if limits.max_context < built.context.tokens:
        progress.note(
            f"memory holds {limits.max_context} tokens of cache: sequences may be no longer"
            f" ({built.context.reason}: {built.context.tokens})"
        )
    grammars = GuidanceGrammars(tokenizer, session.vocab_size)
    begins: list[int] = []
    if built.architecture.reads_source:
        begins = answer_begins(built.checkpoint.folder, language_token(recipe, tokenizer))
    elif recipe.answer_language is not None:
        raise RecipeError(
            f"answer_language is {recipe.answer_language!r}, but {built.architecture.name} is no"
            " encoder-decoder; leave it out"
        )
    loops: list[EngineLoop] = []
    try:
        for one in sessions:
            loops.append(
                EngineLoop(
                    one,
                    limits,
                    tokenizer=tokenizer,
                    grammars=grammars,
                    answer_begins=begins,
                    heard=built.architecture.heard,
                    image_form=built.architecture.image_form,
                )
            )
    except BaseException:
        for loop in loops:
            loop.close(drain=False)
        raise
    if count == 1:
        return loops[0]
    reuse = not session.state_bytes and not begins
    return Replicas(loops, session.block_size, tokenizer=tokenizer, reuse=reuse)


def _longest_source(built: BuiltEngine) -> int:
    """Places of the longest source of an encoder-decoder, which lie in blocks, too."""
    if not built.architecture.reads_source:
        return 0
    return built.architecture.config.longest_source or built.context.tokens


def language_token(recipe: Recipe, tokenizer: Tokenizer) -> int | None:
    """The id of the recipe's `answer_language`. Raises `RecipeError`."""
    name = recipe.answer_language
    if name is None:
        return None
    found = tokenizer.token_id(name)
    if found is None or not tokenizer.is_special(found):
        raise RecipeError(
            f"answer_language: {name!r} is no special token of this checkpoint's tokenizer;"
            " tokenizer_config.json lists them"
        )
    return found


def _start_encoder(
    recipe: Recipe,
    built: BuiltEngine,
    session: Session,
    tokenizer: Tokenizer,
) -> Encoder:
    architecture = built.architecture
    config = config_json(built.checkpoint)
    files = read_sentence_files(built.checkpoint.folder, causal=architecture.pooled)
    if recipe.pooling != "auto":
        files = replace(files, pooling=(recipe.pooling,))
    if recipe.normalize is not None:
        files = replace(files, normalize=recipe.normalize)
    classifier = None
    if architecture.task == "classify":
        labels = getattr(architecture.config, "labels", ())
        classifier = Classifier(labels, architecture.reads, activation_of(config, len(labels)))
    limits = encoder_limits(
        recipe,
        measure(),
        max_context=built.context.tokens,
        block_size=session.block_size,
        block_bytes=session.block_bytes,
    )
    longest = [limits.max_context, files.max_length, tokenizer.max_length]
    return Encoder(
        EncoderLoop(session, limits, vocab_size=vocab_size(architecture)),
        tokenizer,
        files,
        max_tokens=min(n for n in longest if n is not None),
        classifier=classifier,
    )


def _where_it_computes(session: Session) -> tuple[Machine, bool]:
    """This machine, its memory that of the GPU where the session runs on one; and whether it is."""
    machine = measure()
    memory: tuple[int, int] | None = getattr(session, "gpu_memory", None)
    if memory is None:
        return machine, False
    free, total = memory
    return replace(machine, free_bytes=free, memory_bytes=total), True


def import_plugins(recipe: Recipe) -> None:
    """Import the user's own modules by name, so that what they register is known."""
    for name in recipe.plugins:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RecipeError(
                f"plugins: {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
            ) from error


def config_json(checkpoint: LocalCheckpoint) -> dict[str, Any]:
    """The checkpoint's config.json. Raises `ConfigError`."""
    file = checkpoint.folder / "config.json"
    try:
        found = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        held = sorted(f.name for f in checkpoint.folder.iterdir())[:5]
        raise ConfigError(
            f"{file} is not there; a checkpoint's folder holds config.json, *.safetensors and"
            f" tokenizer.json, this one {', '.join(held) or 'nothing'}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: expected an object, found {type(found).__name__}")
    return found


def _architecture(recipe: Recipe, config: Mapping[str, Any]) -> Architecture:
    import_plugins(recipe)
    return registry.read(config, ignore=frozenset(recipe.ignore_config))


def check_config(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """All that can be known from config.json, which is looked at before weights are downloaded.

    Raises `ConfigError` and `RecipeError`.
    """
    context_length(recipe, _architecture(recipe, config).config)
    compute_type(recipe, config)


def compute_type(recipe: Recipe, config: Mapping[str, Any]) -> DType:
    """Of activations and unquantized weights, which the engine has. Raises `RecipeError`."""
    kind = engine_kinds.load(recipe.engine.name)
    dtype = choose_dtype(recipe, config, measure(), kind.CAPABILITIES)
    engine_kinds.check(recipe, kind, dtype)
    if kind.CAPABILITIES.compiles:
        formats = (recipe.quant.weights, recipe.quant.head)
        stored = [engine_kinds.STORED[f] for f in formats if f in engine_kinds.STORED]
        cast(CompilingKind, kind).check_target([dtype, *stored], engine_options(recipe))
    return dtype


def engine_options(recipe: Recipe, *, neighbours: int = 1) -> dict[str, Any]:
    """The recipe's `engine` settings, threads filled in: replicas of `neighbours` ranks each share
    the cores, and none takes more than OMP_NUM_THREADS."""
    options = recipe.engine.model_dump(exclude={"name"}, exclude_none=True)
    machine = measure()
    share = max(1, machine.cores // (neighbours * recipe.mesh.dp))
    options.setdefault("threads", min(share, machine.threads or share))
    return options


def build_options(recipe: Recipe) -> dict[str, Any]:
    """Those of a build and its check: fewer bits are made of the weights only when it is opened."""
    opening = ("precision", "memory_fraction")
    return {k: v for k, v in engine_options(recipe).items() if k not in opening}


def build_bounds(recipe: Recipe, kind: EngineKind, traced: Traced) -> dict[str, int]:
    """What an engine that compiles for sizes is told of them; others take any."""
    if not kind.CAPABILITIES.compiles:
        return {}
    limits = recipe.limits
    asked = {
        "max_context": traced.context.tokens,
        "max_sequences": limits.max_sequences,
        "max_tokens_per_step": limits.max_tokens_per_step,
        "max_source": getattr(traced.architecture.config, "longest_source", None),
    }
    return {key: value for key, value in asked.items() if value is not None}


def sight_of(
    architecture: Architecture, checkpoint: LocalCheckpoint, tokenizer: Tokenizer
) -> Sight | None:
    """What makes prompts with images, of a model that sees."""
    form = architecture.image_form
    return None if form is None else Sight(form, tokenizer, checkpoint.folder)


def read_tokenizer(
    recipe: Recipe, checkpoint: LocalCheckpoint, *, writes: bool = True
) -> Tokenizer:
    """The checkpoint's tokenizer, with the recipe's chat template where it has one.

    `writes` false: of an encoder, which need not turn tokens into text one by one.
    """
    tokenizer = Tokenizer(checkpoint.folder, writes=writes)
    if recipe.chat_template is not None:
        file = Path(recipe.chat_template).expanduser()
        try:
            template = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"chat_template: {file} cannot be read: {error}") from None
        tokenizer.chat_templates = ChatTemplates(
            {"default": template}, tokenizer.special_tokens, str(file)
        )
    return tokenizer
