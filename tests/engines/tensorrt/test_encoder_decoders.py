"""The networks that TensorRT holds of encoder-decoders compute what transformers computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paddock.engines import padded_step
from paddock.engines.padded_step import PaddedPlanner
from paddock.engines.tensorrt import attention, cross_attention
from paddock.engines.tensorrt.definition import Definition, compile_plan
from paddock.engines.tensorrt.engine import prepare
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import interpreted_session
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import DType
from paddock.layers import trace
from paddock.models import registry
from tests.engines.tensorrt.networks import OPTIONS, SoiledDevice, defined, tolerance
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.encoder_decoder_cases import CONTEXT, NAMES, EncoderDecoderCase
from tests.models.encoder_decoder_steps import made, play
from tests.models.play import Plan, chunks, decode, relative_error, whole

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
Patch = pytest.MonkeyPatch


def opened(
    flavour: Flavour, name: str, dtype: DType = DType.F32
) -> tuple[TensorRTSession, Definition]:
    architecture = registry.read(EncoderDecoderCase(name).config)
    model = architecture.build()
    weights = BoundCheckpoint(architecture, model, made(name)[0], dtype=dtype)
    longest = architecture.config.longest_source
    options = OPTIONS | {"max_context": CONTEXT, "max_source": longest}
    plan, definition = defined(
        flavour, prepare(trace(model, dtype=dtype, max_context=CONTEXT), options)
    )
    return interpreted_session(plan, definition, weights, SoiledDevice(), None), definition


def error(session: TensorRTSession, name: str, steps: Plan) -> float:
    found = play(session, EncoderDecoderCase(name), steps)
    return relative_error(found, made(name)[2])


def lengths(name: str) -> list[int]:
    return [len(ids) for ids in EncoderDecoderCase(name).answers]


@pytest.mark.parametrize(
    "name",
    [n if n.endswith("/1") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_equals_transformers(flavour: Flavour, name: str) -> None:
    """In chunks beside sequences of other ages, and token by token, with slots used before."""
    session, _ = opened(flavour, name)
    some = chunks(lengths(name), np.random.default_rng(len(name)))
    for steps in (some, decode(lengths(name), 2)):
        assert error(session, name, steps) < 1e-4


@pytest.mark.parametrize(("name", "dtype"), [("mbart/1", DType.F16), ("whisper/1", DType.BF16)])
def test_in_narrow_floats(flavour: Flavour, name: str, dtype: DType) -> None:
    session, definition = opened(flavour, name, dtype)
    config = EncoderDecoderCase(name).config
    layers = [config.get(key) or 0 for key in ("num_layers", "encoder_layers")]
    layers += [config.get(key) or 0 for key in ("num_decoder_layers", "decoder_layers")]
    bound = tolerance(dtype, sum(layers))
    assert bound / 1000 < error(session, name, whole(lengths(name))) < bound
    assert compile_plan(definition, ["sm80", "sm89", "sm120"])


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_biases_by_distance_compile(flavour: Flavour, dtype: DType) -> None:
    config = EncoderDecoderCase("t5/1").config | {"d_kv": 8}
    graph = trace(registry.read(config).build(), dtype=dtype, max_context=CONTEXT)
    _, definition = defined(flavour, prepare(graph, OPTIONS | {"max_context": CONTEXT}))
    assert compile_plan(definition, ["sm80", "sm89", "sm120"])


def changed_calls(**change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        own = PaddedPlanner._call

        def wrong(self: PaddedPlanner, *arguments: Any) -> padded_step.PaddedCall:
            call = own(self, *arguments)
            return replace(call, **{name: new(call) for name, new in change.items()})

        patch.setattr(PaddedPlanner, "_call", wrong)

    return plant


def one_cache(patch: Patch) -> None:
    """The source's keys are taken for its values."""
    own = attention.updated

    def wrong(state: Any, cache: Any, *rows: Any) -> Any:
        return state.shared.setdefault("first", own(state, cache, *rows))

    patch.setattr(cross_attention, "updated", wrong)


def biases_of_the_next_distance(patch: Patch) -> None:
    own = attention._query_positions
    patch.setattr(
        attention,
        "_query_positions",
        lambda state: state.elementwise("SUM", own(state), state.network.scalar(1, DType.I32, 4)),
    )


MISTAKES: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "sources one shorter": (
        "bart/1",
        changed_calls(source_lengths=lambda call: np.maximum(call.source_lengths - 1, 1)),
    ),
    "a source is written one on": (
        "bart/1",
        changed_calls(source_write_indices=lambda call: call.source_write_indices + 1),
    ),
    "padding of sources is seen": (
        "whisper/1",
        changed_calls(source_row_lengths=lambda call: np.ones_like(call.source_row_lengths)),
    ),
    "values are keys": ("t5/1", one_cache),
    "biases of the next distance": ("t5/1", biases_of_the_next_distance),
}


@pytest.mark.parametrize(("name", "plant"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_shows(
    flavour: Flavour, monkeypatch: Patch, name: str, plant: Callable[[Patch], None]
) -> None:
    plant(monkeypatch)
    session, _ = opened(flavour, name)
    assert not error(session, name, decode(lengths(name), 2)) < 5e-4


def test_a_release_without_lengths_masks_instead(flavour: Flavour) -> None:
    session, _ = opened(flavour.without(ragged_attention=False), "t5/1")
    assert error(session, "t5/1", decode(lengths("t5/1"), 2)) < 1e-4
