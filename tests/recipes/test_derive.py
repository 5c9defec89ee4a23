"""What a recipe leaves open: types, context, limits from memory and cores, sampling."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.engines import reference
from paddock.engines.protocol import Capabilities
from paddock.graph import DType
from paddock.models import registry
from paddock.models.config import ConfigError
from paddock.recipes.derive import (
    choose_dtype,
    context_length,
    derive_limits,
    sampling_defaults,
)
from paddock.recipes.errors import RecipeError
from paddock.recipes.machine import GIB, Machine
from paddock.recipes.schema import Recipe
from paddock.runtime.scheduling.limits import Limits

MACHINE = Machine(2, 24 * GIB, 20 * GIB, "x86_64", frozenset(("avx512_bf16",)))
OLD = dataclasses.replace(MACHINE, features=frozenset(("avx2",)))
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
}


def recipe(**settings: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "checkpoint": "demo", **settings})


def limits(
    machine: Machine = MACHINE, settings: dict[str, Any] | None = None, **sizes: Any
) -> Limits:
    given = {"max_context": 1024, "block_size": 32, "block_bytes": 1 << 20, "unclaimed_bytes": GIB}
    return derive_limits(recipe(limits=settings or {}), machine, **{**given, **sizes})


@pytest.mark.parametrize(
    ("asked", "stored", "machine", "expected"),
    [
        ("auto", "bfloat16", MACHINE, DType.BF16),
        ("auto", "bfloat16", OLD, DType.F32),
        ("auto", "float16", MACHINE, DType.F32),
        ("auto", "float32", MACHINE, DType.F32),
        ("auto", None, MACHINE, DType.F32),
        ("f32", "bfloat16", MACHINE, DType.F32),
        ("bf16", "float32", OLD, DType.BF16),
    ],
)
def test_dtype(asked: str, stored: str | None, machine: Machine, expected: DType) -> None:
    for name in ("dtype", "torch_dtype"):
        found = choose_dtype(recipe(dtype=asked), {name: stored}, machine, reference.CAPABILITIES)
        assert found is expected


def test_dtype_that_the_engine_lacks_is_not_chosen() -> None:
    only_f32 = Capabilities((DType.F32,), (), ("auto",))
    assert choose_dtype(recipe(), {"dtype": "bfloat16"}, MACHINE, only_f32) is DType.F32


def test_context() -> None:
    config = registry.read(LLAMA).config
    assert context_length(recipe(), config).tokens == 1024
    assert context_length(recipe(limits={"max_context": 100}), config).tokens == 100
    with pytest.raises(RecipeError, match=r"limits.max_context is 1025.*1024"):
        context_length(recipe(limits={"max_context": 1025}), config)


def test_context_beyond_training_with_dynamic_scaling() -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config = registry.read(LLAMA | {"rope_parameters": scaling}).config
    assert context_length(recipe(limits={"max_context": 4096}), config).tokens == 4096
    with pytest.raises(RecipeError):
        context_length(recipe(limits={"max_context": 4097}), config)


def test_limits_of_a_machine() -> None:
    found = limits()
    assert found.max_sequences == 16
    assert found.max_tokens_per_step == 512
    assert found.cache_blocks == 16 * (1024 // 32 + 1)
    assert found.max_context == 1024
    assert found.max_queued_requests == 1024
    bigger = limits(dataclasses.replace(MACHINE, cores=64))
    assert bigger.max_sequences == 256
    assert bigger.max_tokens_per_step == 64 * 256


def test_limits_that_are_given_are_kept() -> None:
    given = {
        "max_sequences": 3,
        "max_tokens_per_step": 7,
        "prefill_chunk": 5,
        "cache_gib": 0.05,
        "max_queued_requests": 9,
        "max_queued_tokens": 5000,
        "max_prompt_logit_rows": 4,
        "aging_s": 1.5,
    }
    found = limits(settings=given)
    assert found.cache_blocks == int(0.05 * GIB) >> 20
    for name in given.keys() - {"cache_gib"}:
        assert getattr(found, name) == given[name]


def test_a_cache_larger_than_its_use_is_cut() -> None:
    assert limits(settings={"cache_gib": 10.0, "max_sequences": 1}).cache_blocks == 33


def test_little_memory_shortens_sequences() -> None:
    found = limits(dataclasses.replace(MACHINE, free_bytes=int(3.42 * GIB)))
    assert found.max_context == (found.cache_blocks - 1) * 32 < 1024


@pytest.mark.parametrize(
    ("settings", "free", "words"),
    [
        ({}, 3 * GIB, "no memory for a cache"),
        ({}, 0, "no memory for a cache"),
        ({"cache_gib": 30.0}, 20 * GIB, "20.00 GiB of memory are free"),
        ({"cache_gib": 0.001}, 20 * GIB, "less than 5 blocks"),
        ({"max_sequences": 8, "max_tokens_per_step": 4}, 20 * GIB, "max_tokens_per_step is 4"),
    ],
)
def test_limits_that_cannot_be(settings: dict[str, Any], free: int, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        limits(dataclasses.replace(MACHINE, free_bytes=free), settings)


@given(
    cores=st.integers(1, 128),
    memory=st.integers(1 << 28, 1 << 42),
    free=st.floats(0, 1),
    context=st.integers(1, 1 << 20),
    block_size=st.sampled_from([16, 32, 64]),
    block_bytes=st.integers(1, 1 << 28),
    unclaimed=st.integers(0, 1 << 36),
    state_bytes=st.just(0) | st.integers(1, 1 << 30),
)
def test_the_cache_never_takes_what_is_not_there(
    cores: int,
    memory: int,
    free: float,
    context: int,
    block_size: int,
    block_bytes: int,
    unclaimed: int,
    state_bytes: int,
) -> None:
    machine = Machine(cores, memory, int(memory * free), "x86_64")
    try:
        found = derive_limits(
            recipe(),
            machine,
            max_context=context,
            block_size=block_size,
            block_bytes=block_bytes,
            unclaimed_bytes=unclaimed,
            state_bytes=state_bytes,
        )
    except RecipeError:
        return
    cache = found.cache_blocks * block_bytes + found.max_sequences * state_bytes
    assert cache + unclaimed <= machine.free_bytes * 0.9
    assert 1 <= found.max_context <= context
    assert found.max_context <= found.cache_blocks * block_size


def test_states_take_the_place_of_blocks_and_bound_the_sequences() -> None:
    without, beside = limits(), limits(state_bytes=1 << 20)
    assert beside.max_sequences == without.max_sequences
    full, less = (limits(max_context=1 << 20, state_bytes=n << 20) for n in (0, 1))
    assert full.cache_blocks - less.cache_blocks == less.max_sequences  # states of a block's size
    heavy = limits(state_bytes=GIB)
    assert heavy.max_sequences < without.max_sequences
    with pytest.raises(RecipeError, match=r"beside 16\.000 GiB of sequences' states"):
        limits(settings={"max_sequences": 16}, state_bytes=GIB)


def test_a_model_without_blocks_of_its_own_is_bounded_by_its_states() -> None:
    found = limits(block_bytes=0, state_bytes=1 << 20)
    assert found.max_context == 1024
    assert found.cache_blocks == found.max_sequences * (1024 // 32 + 1)


@pytest.mark.parametrize(
    ("file", "settings", "expected"),
    [
        (None, {}, {"temperature": 0.0}),
        ({"eos_token_id": 2}, {}, {"temperature": 0.0}),
        (
            {"do_sample": False, "temperature": 0.6, "max_new_tokens": 9},
            {},
            {"temperature": 0.0, "max_tokens": 9},
        ),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
            {},
            {"temperature": 0.6, "top_p": 0.9, "top_k": 20},
        ),
        ({"do_sample": True, "repetition_penalty": 1.1}, {}, {"repetition_penalty": 1.1}),
        ({"temperature": 0.7}, {}, {"temperature": 0.7}),
        (
            {"do_sample": True, "temperature": 0.6},
            {"temperature": 0.2, "seed": 3},
            {"temperature": 0.2, "seed": 3},
        ),
    ],
)
def test_sampling_defaults(
    tmp_path: Path, file: dict[str, Any] | None, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    if file is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(file))
    assert sampling_defaults(recipe(sampling=settings), tmp_path) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": -1}', '{"top_p": "x"}'])
def test_a_generation_config_that_is_wrong(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        sampling_defaults(recipe(), tmp_path)
