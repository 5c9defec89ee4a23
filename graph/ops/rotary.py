"""Rotary position embedding: Su et al. 2021, arxiv.org/abs/2104.09864."""

import math
from dataclasses import dataclass

import numpy as np

from paddock.graph.dtype import Array, DType
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Tensor, TensorType


@dataclass(frozen=True)
class RotaryAngles(Op):
    """Cosines and sines of position times frequency, f32 [tokens, 2 x frequencies], halves alike.

    f32 whatever the graph's type: a bf16 position above 256 is not the position any more.
    `factor` multiplies both (the attention factor of YaRN and longrope).
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0

    def infer(self, positions: TensorType) -> tuple[TensorType, TensorType]:
        if positions.rank != 1 or not positions.dtype.is_index:
            raise GraphError(f"positions must be i64 or i32 [tokens], got {positions}")
        if not self.frequencies:
            raise GraphError("expected one frequency at least")
        if not all(math.isfinite(f) for f in (*self.frequencies, self.factor)):
            raise GraphError(f"frequencies and factor must be finite: {self.frequencies}")
        table = TensorType(DType.F32, (positions.shape[0], 2 * len(self.frequencies)))
        return table, table

    def compute(self, positions: Array) -> tuple[Array, Array]:
        # f32 products, as every implementation that was trained with has them.
        frequencies = np.asarray(self.frequencies, np.float32)
        angles = positions.astype(np.float32)[:, None] * frequencies
        angles = np.concatenate([angles, angles], axis=-1)
        factor = np.float32(self.factor)
        return np.cos(angles) * factor, np.sin(angles) * factor


@dataclass(frozen=True)
class Rotary(Op):
    """Rotate the first `2 x frequencies` elements of each head of x [tokens, heads, head size].

    Pairs are (i, i + half), as in Hugging Face's layout, or neighbours where `interleaved`.
    """

    interleaved: bool = False

    def infer(self, x: TensorType, cos: TensorType, sin: TensorType) -> TensorType:
        if x.rank != 3 or cos != sin or cos.rank != 2 or cos.shape[0] != x.shape[0]:
            raise GraphError(f"expected x [tokens, heads, size] and two tables: {x}, {cos}, {sin}")
        if not x.dtype.is_float or cos.dtype is not DType.F32:
            raise GraphError(f"expected x in floats and the tables in f32: {x}, {cos}")
        if cos.size(1) > x.size(2) or cos.size(1) % 2:
            raise GraphError(
                f"{cos.size(1)} rotated elements in a head of {x.size(2)}: expected an even number"
                " that fits"
            )
        return x

    def compute(self, x: Array, cos: Array, sin: Array) -> Array:
        wide, rotated = widen(x), cos.shape[1]
        head, rest = wide[..., :rotated], wide[..., rotated:]
        cos, sin = cos[:, None].astype(wide.dtype), sin[:, None].astype(wide.dtype)
        if self.interleaved:
            half = rotated // 2
            c, s = cos[..., :half], sin[..., :half]
            even, odd = head[..., 0::2], head[..., 1::2]
            turned = np.stack([even * c - odd * s, odd * c + even * s], axis=-1)
            head = turned.reshape(head.shape)
        else:
            first, second = np.split(head, 2, axis=-1)
            head = head * cos + np.concatenate([-second, first], axis=-1) * sin
        return np.concatenate([head, rest], axis=-1).astype(x.dtype)


def rotary_angles(
    positions: Tensor, frequencies: tuple[float, ...], factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """positions: integers [tokens] -> cos, sin: f32 [tokens, 2 x frequencies]."""
    cos, sin = RotaryAngles(tuple(frequencies), factor)(positions)
    return cos, sin


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """x: [tokens, heads, head size]; cos, sin: [tokens, rotated]."""
    return Rotary(interleaved)(x, cos, sin)
