"""What every op computes, against formulas in f64 and against torch where it is installed."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import paddock.graph.ops as F
from paddock.graph import Array, DType, GraphError, Op
from paddock.graph.op import OPS
from paddock.graph.ops.elementwise import widen

FLOATS = (DType.F64, DType.F32, DType.F16, DType.BF16)
# Half a unit in the last place: what rounding once costs.
HALF_ULP = {DType.F64: 2.0**-53, DType.F32: 2.0**-24, DType.F16: 2.0**-11, DType.BF16: 2.0**-8}


def random(dtype: DType, *shape: int, seed: int = 0, spread: float = 1.0) -> Array:
    values = spread * np.random.default_rng([seed, *shape]).standard_normal(shape)
    return values.astype(dtype.numpy)


def close(found: Any, truth: Array, dtype: DType, *, slack: float = 1.0) -> None:
    """Rounded once to `dtype`, after `slack` roundings of the f32 in which it was computed."""
    assert found.dtype == dtype.numpy
    inner = max(HALF_ULP[DType.F32], HALF_ULP[dtype]) if dtype is not DType.F64 else 2.0**-53
    once = HALF_ULP[dtype] * np.abs(truth)
    noise = slack * min(inner, HALF_ULP[DType.F32]) * np.abs(truth).max(initial=1e-30)
    assert found.shape == truth.shape
    assert (np.abs(found.astype(np.float64) - truth) <= 1.01 * once + noise + 1e-30).all()


def exactly(*arrays: Array) -> list[Array]:
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("dtype", FLOATS)
def test_add_mul_scale(dtype: DType) -> None:
    x, y, bias = random(dtype, 5, 7), random(dtype, 5, 7, seed=1), random(dtype, 7)
    wx, wy, wb = exactly(x, y, bias)
    close(F.Add().compute(x, y), wx + wy, dtype)
    close(F.Add().compute(x, bias), wx + wb, dtype)
    close(F.Mul().compute(x, y), wx * wy, dtype)
    close(F.Mul().compute(x, bias), wx * wb, dtype)
    close(F.Scale(-2.75).compute(x), wx * -2.75, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_clamp_and_fill(dtype: DType) -> None:
    x = random(dtype, 5, 7)
    truth = np.minimum(np.maximum(x.astype(np.float64), -0.5), 0.25)
    np.testing.assert_array_equal(F.Clamp(-0.5, 0.25).compute(x).astype(np.float64), truth)
    assert F.Clamp(-0.5, 0.25).compute(x).dtype == dtype.numpy
    ones = F.Fill(1.5, dtype, (2, 3)).compute()
    assert ones.dtype == dtype.numpy
    np.testing.assert_array_equal(ones.astype(np.float64), [[1.5] * 3] * 2)


def test_integers_are_added_as_integers() -> None:
    big = np.array([2**53 + 1, -(2**40) - 1])
    np.testing.assert_array_equal(F.Add().compute(big, np.array([2, 2])), big + 2)
    assert widen(big).dtype == np.int64


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_cast(dtype: DType, target: DType) -> None:
    x = random(dtype, 9, spread=3.0)
    found = F.Cast(target).compute(x)
    assert found.dtype == target.numpy
    np.testing.assert_array_equal(found, x.astype(target.numpy))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


TRUTH: dict[str, Callable[[float], float]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: max(x, 0.0),
    "sigmoid": _sigmoid,
    "tanh": math.tanh,
    "softplus": lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", F.ACTIVATIONS)
def test_activation(kind: str, dtype: DType) -> None:
    x = np.concatenate([random(dtype, 400, spread=3.0), np.array([0, 20, -20], dtype.numpy)])
    truth = np.array([TRUTH[kind](v) for v in x.astype(np.float64)])
    close(F.Activation(kind).compute(x), truth, dtype, slack=8)


@pytest.mark.parametrize("kind", F.ACTIVATIONS)
def test_activation_of_extremes_is_finite_and_silent(kind: str) -> None:
    for dtype in FLOATS:
        largest = 6e4 if dtype is DType.F16 else 1e8
        x = np.array([-largest, largest, -0.0, 0.0], dtype.numpy)
        with np.errstate(all="raise", under="ignore"):
            found = F.Activation(kind).compute(x).astype(np.float64)
        assert np.isfinite(found).all()
        if kind in ("silu", "gelu", "gelu_tanh", "relu"):
            assert found[0] == 0
            assert found[1] == pytest.approx(largest, rel=1e-2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_is_x_times_the_transpose(dtype: DType) -> None:
    x, weight = random(dtype, 5, 24), random(dtype, 3, 24)
    wx, ww = exactly(x, weight)
    truth = np.array([[sum(a * b for a, b in zip(r, w, strict=True)) for w in ww] for r in wx])
    close(F.Linear().compute(x, weight), truth, dtype, slack=30)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_norm(dtype: DType) -> None:
    x, weight = random(dtype, 5, 2, 24, spread=3.0), random(dtype, 24)
    wx, ww = exactly(x, weight)
    truth = np.empty_like(wx)
    for i in np.ndindex(5, 2):
        truth[i] = ww * wx[i] / math.sqrt(sum(v * v for v in wx[i]) / 24 + 0.03)
    close(F.RMSNorm(0.03).compute(x, weight), truth, dtype, slack=8)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm(dtype: DType, with_bias: bool) -> None:
    x, weight, bias = random(dtype, 5, 24, spread=3.0), random(dtype, 24), random(dtype, 24, seed=1)
    wx, ww, wb = exactly(x, weight, bias)
    truth = np.empty_like(wx)
    for i, row in enumerate(wx):
        mean = sum(row) / 24
        variance = sum((v - mean) ** 2 for v in row) / 24
        truth[i] = ww * (row - mean) / math.sqrt(variance + 0.03) + (wb if with_bias else 0)
    operands = (x, weight, bias) if with_bias else (x, weight)
    close(F.LayerNorm(0.03).compute(*operands), truth, dtype, slack=16)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs", [3, 4])
def test_rotary_turns_each_pair_by_its_angle(dtype: DType, interleaved: bool, pairs: int) -> None:
    """A pair is a complex number, times factor * exp(i * position * frequency)."""
    frequencies = (1.0, 0.3, 0.01, 0.002)[:pairs]
    positions = np.array([0, 1, 7, 300, 40000])
    cos, sin = F.RotaryAngles(frequencies, 1.25).compute(positions)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (5, 2 * pairs)
    x = random(dtype, 5, 2, 8)
    (truth,) = exactly(x)
    for t, position in enumerate(positions):
        for head in range(2):
            for i, frequency in enumerate(frequencies):
                a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + pairs)
                # The f32 product is part of the definition.
                angle = float(np.float32(position) * np.float32(frequency))
                turned = complex(x[t, head, a], x[t, head, b]) * 1.25 * np.exp(1j * angle)
                truth[t, head, a], truth[t, head, b] = turned.real, turned.imag
    close(
        F.Rotary(interleaved).compute(x, cos, sin),
        truth,
        dtype,
        slack=16 if dtype is not DType.F64 else 16 * 2.0**29,  # cosines are f32 always
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_split_concat_reshape_gather(dtype: DType) -> None:
    x = random(dtype, 5, 3, 8)
    pieces = F.Split((1, 5, 2)).compute(x)
    assert [p.shape for p in pieces] == [(5, 3, 1), (5, 3, 5), (5, 3, 2)]
    for piece, (start, stop) in zip(pieces, [(0, 1), (1, 6), (6, 8)], strict=True):
        np.testing.assert_array_equal(piece, x[..., start:stop])
    np.testing.assert_array_equal(F.Concat().compute(*pieces), x)
    reshaped = F.Reshape((4, 6)).compute(x)
    for row in range(5):
        assert list(reshaped[row].flat) == list(x[row].flat)
    rows = np.array([4, 0, 0, 2])
    gathered = F.Gather().compute(x, rows)
    assert all((gathered[i] == x[row]).all() for i, row in enumerate(rows))
    folded = F.FoldRows(2).compute(x[:4, 0])
    np.testing.assert_array_equal(folded, [[*x[0, 0], *x[1, 0]], [*x[2, 0], *x[3, 0]]])
    replaced = F.ReplaceRows().compute(x, gathered, np.array([-1, 0, -1, 3, -1]))
    for row, source in enumerate((x[0], x[4], x[2], x[2], x[4])):
        np.testing.assert_array_equal(replaced[row], source)
    np.testing.assert_array_equal(F.ReplaceRows().compute(x, x[:0], np.full(5, -1)), x)


@pytest.mark.parametrize("integers", [DType.I8, DType.I4])
@pytest.mark.parametrize("scale", [DType.F16, DType.F32, DType.BF16])
@pytest.mark.parametrize("groups", [1, 3])
def test_dequantize_is_integer_times_its_group_scale(
    integers: DType, scale: DType, groups: int
) -> None:
    low, high = (-128, 127) if integers is DType.I8 else (-8, 7)
    q = np.random.default_rng(0).integers(low, high + 1, (4, 12)).astype(np.int8)
    scales = random(scale, 4, groups)
    truth = np.array(
        [[int(q[r, c]) * float(scales[r, c * groups // 12]) for c in range(12)] for r in range(4)]
    )
    for dtype in FLOATS:
        found = F.Dequantize(dtype).compute(q.astype(integers.numpy), scales)
        if dtype is DType.F64:
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, truth, rtol=2.0**-24)
        else:
            close(found, truth, dtype)


def test_an_exchange_goes_through_the_communicator() -> None:
    class Loud:
        def __init__(self) -> None:
            self.said: list[str] = []

        def all_reduce(self, x: Array) -> Array:
            self.said.append("all_reduce")
            return 2 * x

        def all_gather(self, x: Array) -> Array:
            self.said.append("all_gather")
            return np.concatenate([x, x], -1)

        def reduce_scatter(self, x: Array) -> Array:
            self.said.append("reduce_scatter")
            return 2 * x[..., : x.shape[-1] // 2]

        def broadcast(self, x: Array) -> Array:
            self.said.append("broadcast")
            return x - x

        def send(self, x: Array) -> None:
            self.said.append("send")

        def receive(self, x: Array) -> None:
            self.said.append(f"receive {x.dtype}{list(x.shape)}")
            x[...] = 7

    x, wire = random(DType.F32, 3, 4), Loud()
    np.testing.assert_array_equal(F.AllReduce().exchange(wire, x), 2 * x)
    assert F.AllGather(2).exchange(wire, x).shape == (3, 8)
    assert F.ReduceScatter(2).exchange(wire, x).shape == (3, 2)
    assert (F.Broadcast().exchange(wire, x) == 0).all()
    assert F.Send().exchange(wire, x) is x
    like = np.zeros(3, np.int64)
    assert (F.Receive(DType.F32, (4,)).exchange(wire, like) == 7).all()
    heard = ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "send"]
    assert wire.said == [*heard, "receive float32[3, 4]"]
    joint: list[Op] = [F.AllReduce(), F.AllGather(2), F.ReduceScatter(2), F.Broadcast()]
    for op in (*joint, F.Send(), F.Receive(DType.F32, (4,))):
        with pytest.raises(GraphError, match="declares no NumPy definition"):
            op.compute(x)


def test_what_is_fed_has_no_value_of_its_own() -> None:
    for op, feeder in (
        (F.Input("x", DType.F32, (4,)), "the step feeds it"),
        (F.Weight("x", DType.F32, (4,)), "the bound weights feeds it"),
        (F.CacheBlocks("x", DType.F32, (4,)), "the runtime feeds it"),
        (F.StateSlots("x", DType.F32, (4,)), "the runtime feeds it"),
    ):
        with pytest.raises(GraphError, match=feeder):
            op.compute()


def test_every_op_that_computes_is_tried_here() -> None:
    source = (F.Input, F.Weight, F.CacheBlocks, F.StateSlots)
    collective = (F.AllReduce, F.AllGather, F.ReduceScatter, F.Broadcast, F.Send, F.Receive)
    # Those with a file of their own.
    elsewhere: tuple[type[Op], ...] = (F.Attention, F.SinkAttention, F.BidirectionalAttention)
    elsewhere += (F.CrossAttention, F.ImageAttention, F.RelativeAttention)
    elsewhere += (F.SequenceMean, F.Route, F.GroupedLinear, F.WeightedSum)
    elsewhere += (F.HeadLinear, F.CausalConv, F.SelectiveScan, F.GatedDeltaRule)
    elsewhere += (F.RealGatedRecurrence,)
    tried = {
        *(F.Add, F.Mul, F.Scale, F.Cast, F.Activation, F.Linear, F.RMSNorm, F.LayerNorm),
        *(F.Clamp, F.Fill),
        *(
            F.RotaryAngles,
            F.Rotary,
            F.Split,
            F.Concat,
            F.Reshape,
            F.FoldRows,
            F.Gather,
            F.ReplaceRows,
            F.Dequantize,
        ),
    }
    ours = {op for op in OPS.values() if op.__module__.startswith("paddock.graph.")}
    assert ours == tried | {*source, *collective, *elsewhere}


finite = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=60, deadline=None)
@given(x=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=finite))
def test_norms_of_any_numbers_are_finite(x: Array) -> None:
    weight = np.ones(x.shape[1], np.float32)
    for op in (F.RMSNorm(1e-6), F.LayerNorm(1e-6)):
        assert np.isfinite(op.compute(x, weight)).all()


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
def test_against_torch() -> None:
    """The same formulas as torch has them; the loops above may share our misreading."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
    functional: Any = torch.nn.functional
    x, weight, bias = random(DType.F64, 6, 24), random(DType.F64, 24), random(DType.F64, 24, seed=1)
    tx, tw, tb = map(torch.tensor, (x, weight, bias))
    matrix = random(DType.F64, 5, 24)
    pairs: list[tuple[Op, tuple[Array, ...], Any]] = [
        (F.Activation("silu"), (x,), functional.silu(tx)),
        (F.Activation("gelu"), (x,), functional.gelu(tx)),
        (F.Activation("gelu_tanh"), (x,), functional.gelu(tx, approximate="tanh")),
        (F.Activation("relu"), (x,), functional.relu(tx)),
        (F.Activation("sigmoid"), (x,), torch.sigmoid(tx)),
        (F.RMSNorm(0.01), (x, weight), functional.rms_norm(tx, (24,), tw, 0.01)),
        (F.LayerNorm(0.01), (x, weight, bias), functional.layer_norm(tx, (24,), tw, tb, 0.01)),
        (F.LayerNorm(0.01), (x, weight), functional.layer_norm(tx, (24,), tw, None, 0.01)),
        (F.Linear(), (x, matrix), functional.linear(tx, torch.tensor(matrix))),
    ]
    for op, operands, expected in pairs:
        np.testing.assert_allclose(op.compute(*operands), expected.numpy(), rtol=1e-12, atol=1e-13)
