"""Ops that move elements about."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.tensor import Dim, Tensor, TensorType


@dataclass(frozen=True)
class Split(Op):
    """Cut the last axis into pieces of the given sizes."""

    sizes: tuple[int, ...]

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if any(size < 1 for size in self.sizes):
            raise GraphError(f"sizes {self.sizes}: each must be 1 at least")
        if sum(self.sizes) != x.size(-1):
            raise GraphError(f"sizes {self.sizes} sum to {sum(self.sizes)}, the last axis of {x}")
        return tuple(x.with_shape(*x.shape[:-1], size) for size in self.sizes)

    def compute(self, x: Array) -> tuple[Array, ...]:
        return tuple(np.split(x, np.cumsum(self.sizes)[:-1], axis=-1))


@dataclass(frozen=True)
class Concat(Op):
    """Join along the last axis."""

    is_by_rows: ClassVar[bool] = True

    def infer(self, *xs: TensorType) -> TensorType:
        if not xs:
            raise GraphError("nothing to join")
        first = xs[0]
        for x in xs:
            if x.dtype is not first.dtype or x.shape[:-1] != first.shape[:-1]:
                raise GraphError(f"{x} does not join {first} along the last axis")
        return first.with_shape(*first.shape[:-1], sum(x.size(-1) for x in xs))

    def compute(self, *xs: Array) -> Array:
        return np.concatenate(xs, axis=-1)


@dataclass(frozen=True)
class Reshape(Op):
    """Another view of the axes behind the first, which stays: [tokens, a*b] <-> [tokens, a, b]."""

    tail: tuple[int, ...]

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if x.rank < 1 or any(size < 1 for size in self.tail):
            raise GraphError(f"{x} has no view with the axes {self.tail} behind the first")
        if prod(x.size(i) for i in range(1, x.rank)) != prod(self.tail):
            raise GraphError(f"{x} has no view [{x.shape[0]}, {', '.join(map(str, self.tail))}]")
        return x.with_shape(x.shape[0], *self.tail)

    def compute(self, x: Array) -> Array:
        return x.reshape(x.shape[0], *self.tail)


@dataclass(frozen=True)
class Gather(Op):
    """Rows of x by number: [n, ...] and integers [m] -> [m, ...]."""

    def infer(self, x: TensorType, rows: TensorType) -> TensorType:
        if rows.rank != 1 or not rows.dtype.is_index:
            raise GraphError(f"row numbers must be i64 or i32 along one axis, got {rows}")
        if x.rank < 1:
            raise GraphError(f"{x} has no rows")
        return x.with_shape(rows.shape[0], *x.shape[1:])

    def compute(self, x: Array, rows: Array) -> Array:
        return x[rows]


@dataclass(frozen=True)
class ReplaceRows(Op):
    """x [n, ...] with rows of y [m, ...]: row i is y's row `rows[i]`, where that is no less than 0.

    There may be no rows of y at all.
    """

    def infer(self, x: TensorType, y: TensorType, rows: TensorType) -> TensorType:
        if rows.rank != 1 or not rows.dtype.is_index or x.rank < 1 or rows.shape != x.shape[:1]:
            raise GraphError(f"expected a row number for each row of {x}, i64 or i32, got {rows}")
        if y.dtype is not x.dtype or y.rank != x.rank or y.shape[1:] != x.shape[1:]:
            raise GraphError(f"rows of {y} are no rows of {x}")
        return x

    def compute(self, x: Array, y: Array, rows: Array) -> Array:
        out = x.copy()
        out[rows >= 0] = y[rows[rows >= 0]]
        return out


@dataclass(frozen=True)
class FoldRows(Op):
    """So many successive rows as one: [n, a] -> [n / count, count x a]. n is a multiple."""

    count: int

    def infer(self, x: TensorType) -> TensorType:
        if self.count < 1 or x.rank != 2:
            raise GraphError(f"expected rows [n, size] and 1 of them at least: {self.count} of {x}")
        rows = x.shape[0]
        if isinstance(rows, int):
            if rows % self.count:
                raise GraphError(f"{rows} rows are no multiple of {self.count}")
            return x.with_shape(rows // self.count, self.count * x.size(1))
        return x.with_shape(Dim(f"{rows} / {self.count}"), self.count * x.size(1))

    def compute(self, x: Array) -> Array:
        return x.reshape(len(x) // self.count, self.count * x.shape[1])


def split(x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """x: [..., sum(sizes)] -> one tensor [..., size] each; x itself where there is one size."""
    return (x,) if sizes == (x.type.size(-1),) else Split(sizes)(x)


def concat(*xs: Tensor) -> Tensor:
    """[..., a], [..., b], ... -> [..., a + b + ...]."""
    return Concat()(*xs)


def reshape(x: Tensor, *tail: int) -> Tensor:
    """[n, ...] -> [n, *tail]."""
    return x if x.shape[1:] == tail else Reshape(tail)(x)


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """x: [n, ...], rows: integers [m] -> [m, ...]."""
    return Gather()(x, rows)


def fold_rows(x: Tensor, count: int) -> Tensor:
    """x: [n, size] -> [n / count, count x size]."""
    return x if count == 1 else FoldRows(count)(x)


def replace_rows(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """x: [n, ...], y: [m, ...], rows: integers [n] -> x with y's rows where `rows` is not -1."""
    return ReplaceRows()(x, y, rows)
