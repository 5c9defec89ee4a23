"""The networks that TensorRT holds of encoders compute what transformers computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paddock.engines import padded_step
from paddock.engines.padded_step import PaddedPlanner
from paddock.engines.tensorrt import encoders
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
from tests.models.encoder_cases import NAMES, EncoderCase
from tests.models.encoder_steps import made, run
from tests.models.play import relative_error

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
LIMITS = {"max_context": 31, "max_sequences": 4, "max_tokens_per_step": 64}
FIRST = [n for n in NAMES if n.endswith("Model/1")]
OTHERS = ["ModernBertForSequenceClassification/1", "ElectraForTokenClassification/1"]


def opened(
    flavour: Flavour, name: str, dtype: DType = DType.F32, **limits: int
) -> tuple[TensorRTSession, Definition, str]:
    """A session, its network, and which rows the architecture reads."""
    architecture = registry.read(EncoderCase(name).config)
    model = architecture.build()
    weights = BoundCheckpoint(architecture, model, made(name)[0], dtype=dtype)
    request = prepare(trace(model, dtype=dtype, max_context=31), OPTIONS | LIMITS | limits)
    plan, definition = defined(flavour, request)
    session = interpreted_session(plan, definition, weights, SoiledDevice(), None)
    return session, definition, architecture.reads if architecture.task == "classify" else "all"


def error(session: TensorRTSession, name: str, reads: str, order: list[int]) -> float:
    found = run(session, EncoderCase(name), order, reads)
    return relative_error(found, [made(name)[1][i] for i in order])


@pytest.mark.parametrize(
    "name",
    [
        *FIRST,
        *OTHERS,
        *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n not in FIRST + OTHERS),
    ],
)
def test_equals_transformers(flavour: Flavour, name: str) -> None:
    session, _, reads = opened(flavour, name)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1, 2], [1]):
        assert error(session, name, reads, order) < 1e-4


def test_rows_are_whole_however_few_tokens_a_step_may_have(flavour: Flavour) -> None:
    session, _, reads = opened(flavour, "RobertaModel/1", max_tokens_per_step=16)
    assert session.plan.bounds.max_step_tokens == 31
    assert error(session, "RobertaModel/1", reads, [0, 1, 2, 3, 4]) < 1e-4


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
@pytest.mark.parametrize("name", ["MPNetModel/3", "ModernBertModel/3"])
def test_in_narrow_floats(flavour: Flavour, name: str, dtype: DType) -> None:
    """MPNet has biases by distance, ModernBERT windows and rotary positions."""
    session, definition, reads = opened(flavour, name, dtype)
    bound = tolerance(dtype, EncoderCase(name).sizes.layers)
    found = error(session, name, reads, [0, 1, 2, 3, 4])
    assert bound / 1000 < found < bound
    assert compile_plan(definition, ["sm80", "sm89", "sm120"])


def without(name: str, change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(encoders, name, change(getattr(encoders, name)))


def longer_rows(patch: pytest.MonkeyPatch) -> None:
    own = PaddedPlanner._call

    def wrong(self: PaddedPlanner, *arguments: Any) -> padded_step.PaddedCall:
        call = own(self, *arguments)
        return replace(call, row_lengths=np.full_like(call.row_lengths, call.token_ids.shape[1]))

    patch.setattr(PaddedPlanner, "_call", wrong)


MISTAKES: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "padding is seen": ("BertModel/1", longer_rows),
    "window one wider": (
        "ModernBertModel/1",
        without("_near", lambda own: lambda state, window, source: own(state, window + 1, source)),
    ),
    "distances turned": (
        "MPNetModel/1",
        without(
            "_distances",
            lambda own: lambda *rows: rows[0].unary("NEG", own(*rows)),
        ),
    ),
    "mean over padding": ("ModernBertForSequenceClassification/1", longer_rows),
}


@pytest.mark.parametrize(("name", "plant"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_shows(
    flavour: Flavour,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    plant(monkeypatch)
    session, _, reads = opened(flavour, name)
    assert not error(session, name, reads, [0, 1, 2, 3, 4]) < 5e-4


def test_a_release_without_lengths_masks_instead(flavour: Flavour) -> None:
    for name in ("BertModel/1", "MPNetModel/1", "ModernBertModel/1"):
        older = flavour.without(ragged_attention=False)
        session, _, reads = opened(older, name)
        assert error(session, name, reads, [0, 1, 2, 3, 4]) < 1e-4
