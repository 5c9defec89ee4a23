"""Mistakes planted in the lowering, the session and the planner: each moves the logits too far.

This is what the parity tests are worth. Every mistake is one that compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paddock.engines import padded_step
from paddock.engines.tensorrt import attention, collectives, lowering
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.lowering import TABLE, Lowering
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import DType, Node, QuantFormat
from paddock.graph import ops as F
from tests.engines.tensorrt.mistakes import changed_op
from tests.engines.tensorrt.networks import FP8, Model, played, session_of, tolerance
from tests.engines.tensorrt.test_parallel import of_case
from tests.models.expected_logits import expected
from tests.models.parity_cases import case
from tests.models.play import decode, relative_error, together

Patch = pytest.MonkeyPatch


def changed_operands(kind: type, change: Callable[[list[Any]], list[Any]]) -> Callable[..., None]:
    def plant(patch: Patch) -> None:
        own = TABLE[kind]
        patch.setitem(TABLE, kind, lambda state, node, inputs: own(state, node, change(inputs)))

    return plant


def changed_results(kind: type, change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        own = TABLE[kind]
        patch.setitem(TABLE, kind, lambda state, node, inputs: change(own(state, node, inputs)))

    return plant


def changed_rows(**change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Fields of what the planner makes of a step."""

    def plant(patch: Patch) -> None:
        own = padded_step.PaddedPlanner._call

        def wrong(self: Any, *arguments: Any) -> Any:
            call = own(self, *arguments)
            return replace(call, **{name: new(call) for name, new in change.items()})

        patch.setattr(padded_step.PaddedPlanner, "_call", wrong)

    return plant


def transposed_output_projection(patch: Patch) -> None:
    own = TABLE[F.Linear]

    def wrong(state: Lowering, node: Node, inputs: list[Any]) -> Any:
        if not node.path.endswith("o_proj"):
            return own(state, node, inputs)
        none = state.network.enum("MatrixOperation", "NONE")
        return state.network.add("matrix_multiply", inputs[0], none, inputs[1], none)

    patch.setitem(TABLE, F.Linear, wrong)


def true_lengths(patch: Patch) -> None:
    """The rule that one would expect: a row sees as many keys as its sequence has."""
    own = padded_step.PaddedPlanner._call

    def wrong(self: Any, step: Any, rows: Any, length: int) -> Any:
        call = own(self, step, rows, length)
        lengths = call.key_value_lengths.copy()
        for row in rows:
            lengths[row.slot - rows[0].slot] = row.past + row.tokens
        return replace(call, key_value_lengths=lengths)

    patch.setattr(padded_step.PaddedPlanner, "_call", wrong)


def epsilon_left_out(patch: Patch) -> None:
    patch.setattr(lowering, "_root", lambda state, mean, eps: state.unary("SQRT", mean))


def cache_of_the_first_slot(patch: Patch) -> None:
    own = TensorRTSession._bind_cache
    patch.setattr(
        TensorRTSession,
        "_bind_cache",
        lambda self, context, given, first, rows: own(self, context, given, 0, rows),
    )


def mask_without_window(patch: Patch) -> None:
    own = attention.seen
    patch.setattr(attention, "seen", lambda state, op: own(state, replace(op, window=None)))


def biases_left_out(patch: Patch) -> None:
    own = TABLE[F.Add]

    def wrong(state: Lowering, node: Node, inputs: list[Any]) -> Any:
        is_bias = node.inputs[1].type.rank == 1
        return inputs[0] if is_bias else own(state, node, inputs)

    patch.setitem(TABLE, F.Add, wrong)


# name -> (a case that shows it, how it is planted)
MISTAKES: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "transposed weight": ("llama", transposed_output_projection),
    "scale a percent off": (
        "llama",
        changed_op(F.Attention, lambda op: replace(op, scale=op.scale * 1.01)),
    ),
    "epsilon left out": ("llama", epsilon_left_out),
    "other activation": ("llama", changed_op(F.Activation, lambda op: F.Activation("sigmoid"))),
    "approximate gelu": (
        "llama-gelu",
        changed_op(F.Activation, lambda op: F.Activation("gelu_tanh")),
    ),
    "cosine for sine": ("llama", changed_results(F.RotaryAngles, lambda pair: pair[::-1])),
    "neighbours for halves": (
        "llama",
        changed_op(F.Rotary, lambda op: replace(op, interleaved=not op.interleaved)),
    ),
    "frequencies a little off": (
        "llama-linear",
        changed_op(
            F.RotaryAngles,
            lambda op: replace(op, frequencies=tuple(f * 1.02 for f in op.frequencies)),
        ),
    ),
    "factor of angles left out": (
        "llama-yarn",
        changed_op(F.RotaryAngles, lambda op: replace(op, factor=1.0)),
    ),
    "keys for values": (
        "llama",
        changed_operands(F.Attention, lambda x: [x[0], x[2], x[1], *x[3:]]),
    ),
    "window of one more": (
        "mistral",
        changed_op(F.Attention, lambda op: replace(op, window=op.window + 1)),
    ),
    "no window": ("mistral", mask_without_window),
    "gate for up": ("llama", changed_operands(F.Mul, lambda x: [x[0], x[0]])),
    "bias left out": ("llama-biases", biases_left_out),
    "lengths of sequences": ("llama", true_lengths),
    "lengths one short": (
        "llama",
        changed_rows(key_value_lengths=lambda call: call.key_value_lengths - 1),
    ),
    "written one place on": (
        "llama",
        changed_rows(write_indices=lambda call: call.write_indices + 1),
    ),
    "positions one on": (
        "llama-narrow-heads",
        changed_rows(positions=lambda call: call.positions + np.arange(call.positions.shape[1])),
    ),
    "row before the one asked for": (
        "llama",
        changed_rows(logit_rows=lambda call: np.maximum(call.logit_rows - 1, 0)),
    ),
    "cache of the first slot": ("llama", cache_of_the_first_slot),
}


def found_error(flavour: Flavour, name: str) -> float:
    """Over steps in which prompts of unlike lengths and single tokens meet."""
    session = session_of(flavour, Model(name))
    sequences = case(name).sequences
    lengths = [len(ids) for ids in sequences]
    errors = [
        relative_error(played(session, sequences, steps, np.random.default_rng(2)), expected(name))
        for steps in (together(lengths), decode(lengths, prompt=7), ragged(lengths))
    ]
    return max(errors)


def ragged(lengths: list[int]) -> list[list[tuple[int, int]]]:
    """Chunks of 8 and 7 in one call, then a chunk beside single tokens."""
    long, short = lengths
    return [[(0, 8), (1, 7)], [(0, long - 10), (1, 1)], [(0, 1)], [(0, 1), (1, short - 8)]]


@pytest.mark.parametrize(("name", "plant"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_shows(
    flavour: Flavour, monkeypatch: Patch, name: str, plant: Callable[[Patch], None]
) -> None:
    allowed = tolerance(DType.F32, 3)
    assert found_error(flavour, name) < allowed
    plant(monkeypatch)
    assert not found_error(flavour, name) < 5 * allowed  # NaN is far off, too


def turned_square(state: Lowering, y: Any) -> Any:
    return state.view(y, after=(1, 0)) if y.shape[0] == y.shape[1] else y


def a_percent_more(state: Lowering, y: Any) -> Any:
    return state.elementwise("PROD", y, state.network.scalar(1.01, DType.F32, 2))


@pytest.mark.parametrize("change", [turned_square, a_percent_more])
@pytest.mark.parametrize("quant", [QuantFormat(DType.I8), QuantFormat(DType.I4, 8), FP8])
def test_mistakes_in_quantization_show(
    flavour: Flavour,
    monkeypatch: Patch,
    quant: QuantFormat,
    change: Callable[[Lowering, Any], Any],
) -> None:
    model = Model("llama", quant=quant)
    sequences = model.case.sequences
    steps = together([len(ids) for ids in sequences])
    right = played(session_of(flavour, model), sequences, steps, np.random.default_rng(1))
    own = TABLE[F.Dequantize]
    monkeypatch.setitem(
        TABLE, F.Dequantize, lambda state, node, inputs: change(state, own(state, node, inputs))
    )
    wrong = played(session_of(flavour, model), sequences, steps, np.random.default_rng(1))
    assert relative_error(wrong, right) > 1e-3


def sum_left_out(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return inputs[0]


def sum_twice(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return collectives.all_reduce(state, node, [collectives.all_reduce(state, node, inputs)])


def sum_of_one_rank_more(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """What is added once, in one rank alone, as a bias, is added by each."""
    y = collectives.all_reduce(state, node, inputs)
    return state.elementwise("SUM", y, state.network.scalar(0.01, DType.F32, 2))


@pytest.mark.parametrize("wrong", [sum_left_out, sum_twice, sum_of_one_rank_more])
def test_mistakes_among_ranks_show(flavour: Flavour, monkeypatch: Patch, wrong: Any) -> None:
    monkeypatch.setitem(TABLE, F.AllReduce, wrong)
    session = of_case(flavour, "llama", (2, 1))
    sequences = case("llama").sequences
    steps = together([len(ids) for ids in sequences])
    try:
        found = played(session, sequences, steps, np.random.default_rng(1))
    finally:
        session.close()
    assert relative_error(found, expected("llama")) > 5 * tolerance(DType.F32, 3)
