"""Weights as OpenVINO constants over the bytes where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import Shape, Type, op
from openvino import opset16 as opset

from paddock.engines.protocol import BuildError, WeightSource
from paddock.graph import Array, DType
from paddock.graph.ops import Weight

OV_TYPES: dict[DType, Type] = {
    DType.F32: Type.f32,
    DType.F16: Type.f16,
    DType.BF16: Type.bf16,
    DType.I64: Type.i64,
    DType.I32: Type.i32,
    DType.I8: Type.i8,
    DType.U8: Type.u8,
    DType.I4: Type.i4,
    DType.BOOL: Type.boolean,
}


class Weights:
    """Constants without copies.

    OpenVINO does not own the memory under a shared constant: `kept` holds the arrays, and must
    live as long as the compiled model does.
    """

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.kept: list[tuple[Array, Any]] = []

    def constant(self, weight: Weight, shape: tuple[int, ...] | None = None) -> Any:
        """The stored array of a weight as a constant of its own type, viewed as `shape`."""
        array = self._source.stored(weight.key, weight.part)
        whole = tuple(int(d) for d in weight.shape if isinstance(d, int))
        bits = array.size * array.dtype.itemsize * 8
        if bits != int(np.prod(whole, dtype=np.int64)) * weight.dtype.bits:
            raise BuildError(
                f"{weight.key}: the engine expects {weight.dtype}{list(whole)}, the bound weights"
                f" hold {array.dtype}{list(array.shape)}; build the engine again"
            )
        # Bytes, because OpenVINO's binding does not know ml_dtypes' types; the type is said apart.
        bytes_ = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        tensor = ov.Tensor(bytes_, Shape(list(shape or whole)), OV_TYPES[weight.dtype])
        self.kept.append((bytes_, tensor))
        return op.Constant(tensor)

    def widened(self, weight: Weight) -> Any:
        """The weight as f32 in the graph, kept in its own type by the compiler.

        The mark on the conversion is what OpenVINO itself puts on compressed weights; without it
        the CPU compiler folds the conversion and keeps a copy in f32.
        """
        constant = self.constant(weight)
        if weight.dtype is DType.F32:
            return constant
        convert = opset.convert(constant, "f32")
        convert.get_rt_info()["decompression_0"] = ""
        return convert
