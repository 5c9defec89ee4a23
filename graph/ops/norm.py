"""Normalisation over the last axis, computed in f32 whatever the element type."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Tensor, TensorType


@dataclass(frozen=True)
class RMSNorm(Op):
    """weight * x / sqrt(mean(x^2) + eps): Zhang and Sennrich 2019, arxiv.org/abs/1910.07467."""

    eps: float

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType, weight: TensorType) -> TensorType:
        _check_eps(self.eps)
        return _over_last_axis(x, weight)

    def compute(self, x: Array, weight: Array) -> Array:
        wide = widen(x)
        mean = np.mean(wide * wide, axis=-1, keepdims=True)
        return (wide / np.sqrt(mean + wide.dtype.type(self.eps)) * widen(weight)).astype(x.dtype)


@dataclass(frozen=True)
class LayerNorm(Op):
    """weight * (x - mean) / sqrt(var + eps) + bias: Ba et al. 2016, arxiv.org/abs/1607.06450.

    The third operand, the bias, may be left out.
    """

    eps: float

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType, weight: TensorType, *bias: TensorType) -> TensorType:
        _check_eps(self.eps)
        if len(bias) > 1:
            raise GraphError(f"expected one bias, got {len(bias)}")
        for operand in (weight, *bias):
            _over_last_axis(x, operand)
        return x

    def compute(self, x: Array, weight: Array, *bias: Array) -> Array:
        wide = widen(x)
        centred = wide - np.mean(wide, axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        y = centred / np.sqrt(variance + wide.dtype.type(self.eps)) * widen(weight)
        return (y + widen(bias[0]) if bias else y).astype(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., features], weight: [features]."""
    return RMSNorm(eps)(x, weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """x: [..., features], weight and bias: [features]."""
    return LayerNorm(eps)(x, weight) if bias is None else LayerNorm(eps)(x, weight, bias)


def _over_last_axis(x: TensorType, weight: TensorType) -> TensorType:
    if x.rank < 1 or weight.shape != x.shape[-1:]:
        raise GraphError(f"weight {weight} does not match the last axis of {x}")
    if not (x.dtype.is_float and weight.dtype.is_float):
        raise GraphError(f"expected floats: {x}, {weight}")
    return x


def _check_eps(eps: float) -> None:
    if not 0 <= eps < float("inf"):
        raise GraphError(f"eps is {eps}, expected a finite number from 0 up")
