"""Matrix products with weights."""

from dataclasses import dataclass

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Tensor, TensorType


@dataclass(frozen=True)
class Linear(Op):
    """y = x W^T with x [n, inputs] and W [outputs, inputs]."""

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


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x: [n, inputs], weight: [outputs, inputs] -> [n, outputs]."""
    return Linear()(x, weight)
