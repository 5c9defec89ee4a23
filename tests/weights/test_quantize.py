from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddock.graph import Array, DType, QuantFormat
from paddock.graph.ops import Dequantize
from paddock.weights.quantize import (
    INT4_STEPS,
    dequantize_rows,
    pack_int4,
    quantize_rows,
    unpack_int4,
)

INT8, FP8 = QuantFormat(DType.I8), QuantFormat(DType.F8E4M3, scale=DType.F32)


def sample(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def test_int8_is_within_half_a_step() -> None:
    weights = sample(64, 256)
    integers, scales = quantize_rows(weights, INT8)
    assert integers.dtype == np.int8
    assert scales.dtype == np.float16
    assert scales.shape == (64, 1)
    assert np.abs(integers).max() == 127
    error = np.abs(dequantize_rows(integers, scales) - weights)
    # Half a step; the largest weight may be as far again as the scale was rounded.
    step = scales.astype(np.float32)
    assert (error <= step * (0.5 + 127 * 2**-11)).all()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4(group: int) -> None:
    weights = sample(64, 256)
    integers, scales = quantize_rows(weights, QuantFormat(DType.I4, group))
    assert scales.shape == (64, 256 // group)
    assert integers.min() == -8
    assert integers.max() <= 7
    error = (dequantize_rows(integers, scales) - weights).reshape(64, -1, group)
    plain = np.abs(weights.reshape(64, -1, group)).max(2, keepdims=True) / 7
    rounded = np.rint(weights.reshape(64, -1, group) / plain) * plain
    plain_error = ((rounded - weights.reshape(64, -1, group)) ** 2).mean()
    assert (error**2).mean() < 0.85 * plain_error


def test_each_group_takes_the_best_of_its_steps() -> None:
    weights = sample(16, 128, seed=1)
    quant = QuantFormat(DType.I4, 32)

    def errors(steps: tuple[float, ...]) -> Array:
        close = dequantize_rows(*quantize_rows(weights, quant, steps=steps))
        summed: Array = np.sum(((close - weights) ** 2).reshape(16, -1, 32), axis=2)
        return summed

    one_by_one = np.min([errors((step,)) for step in INT4_STEPS], axis=0)
    np.testing.assert_allclose(errors(INT4_STEPS), one_by_one, rtol=1e-4)


def test_a_positive_extreme_is_exact_at_step_8() -> None:
    """The scale is negative then: -8 times it is the extreme."""
    weights = np.zeros((1, 32), np.float32)
    weights[0, :3] = [1.0, -0.5, 0.25]
    integers, scales = quantize_rows(weights, QuantFormat(DType.I4, 32), steps=(8.0,))
    assert scales[0, 0] == -0.125
    assert integers[0, :3].tolist() == [-8, 4, -2]
    np.testing.assert_array_equal(dequantize_rows(integers, scales), weights)


def test_int8_stays_symmetric_where_scales_are_coarse() -> None:
    """7e-8 becomes 6e-8 in f16, whose smallest steps are that wide."""
    weights = np.array([[-127, 64, 127]], np.float32) * np.float32(7e-8)
    integers, scales = quantize_rows(weights, INT8)
    assert float(scales[0, 0]) < 6.1e-8
    assert integers.tolist() == [[-127, 75, 127]]


@pytest.mark.parametrize("quant", [INT8, QuantFormat(DType.I4, 8)], ids=str)
def test_zeros_tiny_huge_and_not_finite(quant: QuantFormat) -> None:
    reach = 60_000 * (127 if quant is INT8 else 8)
    rows = np.array([0, 1e-30, 1e-7, reach, 1e30], np.float32)
    weights = np.repeat(rows[:, None], 8, 1) * np.linspace(-1, 1, 8, dtype=np.float32)
    integers, scales = quantize_rows(weights, quant)
    assert np.isfinite(scales).all()
    close = dequantize_rows(integers, scales)
    assert (close[:2] == 0).all()  # below what an f16 scale can hold
    assert np.abs(close[3] - weights[3]).max() < reach * 0.1
    assert np.abs(close[4]).max() > 5e5  # clipped at the largest scale
    weights = np.array([[np.nan, np.inf, -np.inf, 1, -1, 0, 0.5, 0.25]], np.float32)
    close = dequantize_rows(*quantize_rows(weights, quant))
    assert close[0, :3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(close[0, 3:], weights[0, 3:], atol=0.15)


def test_e4m3_rounds_each_number_to_its_nearest() -> None:
    """In 3 bits behind the leading one, down to where its exponents end."""
    weights = sample(64, 256)
    stored, scales = quantize_rows(weights, FP8)
    assert stored.dtype == ml_dtypes.float8_e4m3fn
    assert scales.dtype == np.float32
    assert np.abs(stored.astype(np.float32)).max() == 448
    error = np.abs(dequantize_rows(stored, scales) - weights)
    assert (error <= np.maximum(np.abs(weights) * 2**-4, scales * 2**-10) * 1.0001).all()
    assert (error > np.abs(weights) * 2**-5).any()


def test_e4m3_has_no_nan_of_finite_weights() -> None:
    """Where a scale was rounded down, or is the largest there is, weights are clipped."""
    in_f16 = QuantFormat(DType.F8E4M3)
    for quant, largest in ((FP8, 3e38), (in_f16, 1.0003), (in_f16, 1e30)):
        weights = np.linspace(-largest, largest, 96, dtype=np.float32).reshape(1, -1)
        stored, _ = quantize_rows(weights, quant)
        assert np.isfinite(stored.astype(np.float32)).all()
    close = dequantize_rows(*quantize_rows(np.array([[np.nan, np.inf, 1, 0.5]], np.float32), FP8))
    assert close.tolist() == [[0, 0, 1, 0.5]]
    zeros = np.zeros((1, 4), np.float32)
    assert not dequantize_rows(*quantize_rows(zeros, FP8)).any()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9))
def test_packing_goes_back_and_forth(rows: int, pairs: int) -> None:
    integers = (
        np.random.default_rng(rows * pairs).integers(-8, 8, (rows, 2 * pairs)).astype(np.int8)
    )
    packed = pack_int4(integers)
    assert packed.dtype == np.uint8
    assert packed.shape == (rows, pairs)
    unpacked = unpack_int4(packed)
    assert unpacked.dtype == ml_dtypes.int4
    np.testing.assert_array_equal(unpacked.astype(np.int8), integers)


def test_the_low_half_comes_first() -> None:
    assert pack_int4(np.array([[1, -2]], np.int8)).tolist() == [[0xE1]]


def test_dequantizes_as_the_graph_does() -> None:
    integers, scales = quantize_rows(sample(8, 64), QuantFormat(DType.I4, 16))
    as_graph = Dequantize(DType.F32).compute(unpack_int4(pack_int4(integers)), scales)
    np.testing.assert_array_equal(as_graph, dequantize_rows(integers, scales))
