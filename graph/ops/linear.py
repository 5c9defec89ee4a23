"""Matrix products with weights."""

from dataclasses import dataclass
from typing import ClassVar

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Tensor, TensorType


@dataclass(frozen=True)
class Linear(Op):
    """y = x W^T with x [n, inputs] and W [outputs, inputs]."""

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType, weight: TensorType) -> TensorType:
        if x.rank != 2 or weight.rank != 2 or x.shape[1] != weight.shape[1]:
            raise GraphError(f"expected x [n, inputs] and weight [outputs, inputs]: {x}, {weight}")
        if x.dtype is not weight.dtype:
            raise GraphError(f"element types differ: {x} and {weight}; cast one of them")
        if not x.dtype.is_float:
            raise GraphError(f"expected floats: {x}; integers go through `dequantize`")
        return x.with_shape(x.shape[0], weight.shape[0])

    def compute(self, x: Array, weight: Array) -> Array:
        return (widen(x) @ widen(weight).T).astype(x.dtype)


@dataclass(frozen=True)
class HeadLinear(Op):
    """For each head a product of its own: x [tokens, heads, inputs], W [heads, rows, columns].

    Of each head's matrix the `rows` from `first` on count. y = x W^T [tokens, heads, rows], or
    where `turned` y = x W [tokens, heads, columns].
    """

    first: int
    rows: int
    turned: bool = False

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType, weight: TensorType) -> TensorType:
        if x.rank != 3 or weight.rank != 3 or x.shape[1] != weight.shape[0]:
            raise GraphError(
                f"expected x [tokens, heads, inputs] and W [heads, rows, columns]: {x}, {weight}"
            )
        if x.dtype is not weight.dtype or not x.dtype.is_float:
            raise GraphError(f"expected floats of one type: {x} and {weight}; cast one of them")
        if not (self.first >= 0 < self.rows and self.first + self.rows <= weight.size(1)):
            raise GraphError(f"{weight} has no {self.rows} rows from {self.first} on")
        inputs, outputs = self.rows, weight.size(2)
        if not self.turned:
            inputs, outputs = outputs, inputs
        if x.shape[2] != inputs:
            raise GraphError(f"expected {inputs} inputs: {x}")
        return x.with_shape(*x.shape[:2], outputs)

    def compute(self, x: Array, weight: Array) -> Array:
        matrices = widen(weight[:, self.first : self.first + self.rows])
        if not self.turned:
            matrices = matrices.transpose(0, 2, 1)
        y = widen(x).transpose(1, 0, 2) @ matrices
        return y.transpose(1, 0, 2).astype(x.dtype)


def head_linear(x: Tensor, weight: Tensor, rows: slice, *, turned: bool = False) -> Tensor:
    """x: [tokens, heads, inputs], weight: [heads, rows, columns] -> [tokens, heads, outputs]."""
    return HeadLinear(rows.start, rows.stop - rows.start, turned)(x, weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x: [n, inputs], weight: [outputs, inputs] -> [n, outputs]."""
    return Linear()(x, weight)
