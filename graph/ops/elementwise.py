"""Ops that treat each element alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddock.graph.dtype import Array, DType
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.tensor import Tensor, TensorType


def widen(x: Array) -> Array:
    """Low-precision floats as f32, in which the NumPy definitions compute; others unchanged."""
    return x.astype(np.float32) if x.dtype in _NARROW else x


_NARROW = tuple(d.numpy for d in (DType.F16, DType.BF16, DType.F8E4M3))


@dataclass(frozen=True)
class Add(Op):
    """x + y; y may lack leading axes of x (a bias [features] on [tokens, features])."""

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        return _same_tail(x, y)

    def compute(self, x: Array, y: Array) -> Array:
        return (widen(x) + widen(y)).astype(x.dtype)


@dataclass(frozen=True)
class Mul(Op):
    """x * y; y may lack leading axes of x."""

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        return _same_tail(x, y)

    def compute(self, x: Array, y: Array) -> Array:
        return (widen(x) * widen(y)).astype(x.dtype)


@dataclass(frozen=True)
class Scale(Op):
    """x times a constant."""

    factor: float

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if not x.dtype.is_float:
            raise GraphError(f"{x} times a constant: expected floats")
        return x

    def compute(self, x: Array) -> Array:
        wide = widen(x)
        return (wide * wide.dtype.type(self.factor)).astype(x.dtype)


@dataclass(frozen=True)
class Clamp(Op):
    """x, but no less than `low` and no more than `high`."""

    low: float
    high: float

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if not x.dtype.is_float:
            raise GraphError(f"{x} within bounds: expected floats")
        if self.low > self.high:
            raise GraphError(f"nothing lies between {self.low} and {self.high}")
        return x

    def compute(self, x: Array) -> Array:
        return np.clip(widen(x), self.low, self.high).astype(x.dtype)


@dataclass(frozen=True)
class Cast(Op):
    """x in another element type."""

    dtype: DType

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        return TensorType(self.dtype, x.shape)

    def compute(self, x: Array) -> Array:
        return x.astype(self.dtype.numpy)


@dataclass(frozen=True)
class Activation(Op):
    """A nonlinearity by its name in `ACTIVATIONS`."""

    kind: str

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if self.kind not in ACTIVATIONS:
            raise GraphError(f"no activation {self.kind!r}; there are {', '.join(ACTIVATIONS)}")
        if not x.dtype.is_float:
            raise GraphError(f"{self.kind} of {x}: expected floats")
        return x

    def compute(self, x: Array) -> Array:
        return ACTIVATIONS[self.kind](widen(x)).astype(x.dtype)


def _sigmoid(x: Array) -> Array:
    # With exp(-|x|) nothing overflows, and what is near 0 keeps its digits.
    one, e = x.dtype.type(1), np.exp(-np.abs(x))
    return np.where(x < 0, e, one) / (one + e)


def _erf(x: Array) -> Array:
    from math import erf

    return np.vectorize(erf, otypes=[x.dtype])(x)


def _gelu(x: Array) -> Array:
    """x Phi(x): Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415."""
    return x * x.dtype.type(0.5) * (x.dtype.type(1) + _erf(x * x.dtype.type(0.5**0.5)))


def _gelu_tanh(x: Array) -> Array:
    """The tanh approximation of gelu, section 2 of the same paper."""
    inner = x.dtype.type((2 / np.pi) ** 0.5) * (x + x.dtype.type(0.044715) * x * x * x)
    return x.dtype.type(0.5) * x * (x.dtype.type(1) + np.tanh(inner))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, x.dtype.type(0)),
}


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y: [..., features]; y may lack leading axes."""
    return Add()(x, y)


def mul(x: Tensor, y: Tensor) -> Tensor:
    """x * y: [..., features]; y may lack leading axes."""
    return Mul()(x, y)


def scale(x: Tensor, factor: float) -> Tensor:
    """x * factor."""
    return Scale(float(factor))(x)


def clamp(x: Tensor, low: float, high: float) -> Tensor:
    """x within bounds, element by element."""
    return Clamp(float(low), float(high))(x)


def cast(x: Tensor, dtype: DType) -> Tensor:
    """x as `dtype`; x itself where it is that already."""
    return x if x.dtype is dtype else Cast(dtype)(x)


def activation(x: Tensor, kind: str) -> Tensor:
    """The nonlinearity named `kind`, element by element."""
    return Activation(kind)(x)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return Activation("silu")(x)


def _same_tail(x: TensorType, y: TensorType) -> TensorType:
    if x.dtype is not y.dtype:
        raise GraphError(f"element types differ: {x} and {y}; cast one of them")
    if not (x.dtype.is_float or x.dtype.is_index):
        raise GraphError(f"expected floats, i64 or i32: {x}")
    if y.rank > x.rank or x.shape[x.rank - y.rank :] != y.shape:
        raise GraphError(f"shapes do not match: {x} and {y}")
    return x
