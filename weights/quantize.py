"""Weights as integers and scales: int8 a row, int4 in groups, symmetric about zero."""

from __future__ import annotations

import numpy as np

from paddock.graph import Array, DType, QuantFormat

# int4 runs from -8 to 7. Where a group's largest weight, positive or negative, is put: at 7 it is
# exact, beyond it the largest are clipped, and all the others are finer.
INT4_STEPS = (7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0)


def quantize_rows(
    weights: Array, quant: QuantFormat, *, steps: tuple[float, ...] = INT4_STEPS
) -> tuple[Array, Array]:
    """f32 [rows, columns] -> i8 integers [rows, columns], scales [rows, groups].

    A weight is integer x scale, with the scale rounded to its stored type first. For int4, of
    the scales max|w| / step each group takes that with the least squared error. Weights that are
    not finite become 0.
    """
    rows, columns = weights.shape
    grouped = weights.reshape(rows, -1, quant.group or columns)
    if not np.isfinite(grouped.max(initial=0) - grouped.min(initial=0)):
        grouped = np.nan_to_num(grouped, nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.maximum(grouped.max(2), -grouped.min(2))
    if quant.dtype is DType.I8:
        scales = _stored(largest / np.float32(127), quant.scale)
        integers = _round(grouped, scales, -127, 127)
        return integers.reshape(rows, columns).astype(np.int8), scales
    scales = _stored(largest / np.float32(steps[0]), quant.scale)
    integers = _round(grouped, scales, -8, 7)
    if len(steps) > 1:
        best = _squared_error(grouped, integers, scales)
        for step in steps[1:]:
            tried_scales = _stored(largest / np.float32(step), quant.scale)
            tried = _round(grouped, tried_scales, -8, 7)
            error = _squared_error(grouped, tried, tried_scales)
            better = error < best
            best = np.where(better, error, best)
            scales = np.where(better, tried_scales, scales)
            np.copyto(integers, tried, where=better[..., None])
    return integers.reshape(rows, columns).astype(np.int8), scales


def dequantize_rows(integers: Array, scales: Array) -> Array:
    """Integers [rows, columns], scales [rows, groups] -> f32 [rows, columns]."""
    rows, columns = integers.shape
    grouped = integers.astype(np.float32).reshape(rows, scales.shape[1], -1)
    weights: Array = grouped * scales.astype(np.float32)[..., None]
    return weights.reshape(rows, columns)


def pack_int4(integers: Array) -> Array:
    """i8 in -8..7 [rows, columns] -> u8 [rows, columns / 2], the low half first."""
    halves = integers.view(np.uint8)
    packed: Array = (halves[:, 0::2] & 0x0F) | (halves[:, 1::2] << 4)
    return packed


def unpack_int4(packed: Array) -> Array:
    """u8 [..., columns / 2] -> int4 (one a byte, as `ml_dtypes` has it) [..., columns]."""
    integers = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.int8)
    integers[..., 0::2] = (packed << 4).view(np.int8) >> 4
    integers[..., 1::2] = packed.view(np.int8) >> 4
    return integers.astype(DType.I4.numpy)


def _stored(scales: Array, dtype: DType) -> Array:
    """In the stored type, and within it: weights past its reach are clipped."""
    limit = np.finfo(dtype.numpy).max if dtype is not DType.BF16 else np.inf
    return np.minimum(scales, np.float32(limit)).astype(dtype.numpy)


def _round(grouped: Array, scales: Array, low: int, high: int) -> Array:
    """The nearest integers, as f32; all 0 where the scale has become 0."""
    wide = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    integers = grouped * inverse[..., None]
    np.rint(integers, out=integers)
    return np.clip(integers, low, high, out=integers)


def _squared_error(grouped: Array, integers: Array, scales: Array) -> Array:
    """Of each group."""
    error = integers * scales.astype(np.float32)[..., None]
    error -= grouped
    result: Array = np.einsum("rgc,rgc->rg", error, error)
    return result
