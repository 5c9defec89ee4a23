"""Weights as OpenVINO constants over the bytes where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import Shape, Type, op
from openvino import opset16 as opset

from paddock.engines.openvino.mapped_pages import MappedPages
from paddock.engines.protocol import BuildError, WeightSource
from paddock.graph import Array, DType
from paddock.graph.ops import Weight
from paddock.graph.tensor import fixed

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

# What OpenVINO itself puts on the conversions of compressed weights.
_DECOMPRESSION = "decompression_0"


class Weights:
    """Constants without copies.

    OpenVINO does not own the memory under a shared constant: `kept` holds the arrays, and must
    live as long as the compiled model does. `pages` are the file mappings among them.
    """

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.kept: list[tuple[Array, Any]] = []
        self.pages = MappedPages()

    def constant(self, weight: Weight, shape: tuple[int, ...] | None = None) -> Any:
        """The stored array of a weight as a constant of its own type, viewed as `shape`.

        Raises `BuildError` where the bound weights are not what the graph was built for.
        """
        array = self._source.stored(weight.key, weight.part)
        whole = fixed(weight.shape)
        # int4 is stored two a byte, along the columns.
        columns = whole[-1] // 2 if weight.dtype is DType.I4 else whole[-1]
        kind = np.dtype(np.uint8) if weight.dtype is DType.I4 else weight.dtype.numpy
        if array.shape != (*whole[:-1], columns) or array.dtype != kind:
            raise BuildError(
                f"{weight.key}: the engine expects {weight.dtype}{list(whole)}, the bound weights"
                f" hold {array.dtype}{list(array.shape)}; build the engine again"
            )
        # Bytes, because OpenVINO's binding does not know ml_dtypes' types; the type is said apart.
        contents = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        tensor = ov.Tensor(contents, Shape(list(shape or whole)), OV_TYPES[weight.dtype])
        self.kept.append((contents, tensor))
        self.pages.add(contents)
        return op.Constant(tensor)

    def widened(self, weight: Weight) -> Any:
        """The weight as f32 in the graph, kept in its own type by the compiler.

        Without the mark on the conversion the CPU compiler would fold it and keep a copy in f32.
        """
        constant = self.constant(weight)
        if weight.dtype is DType.F32:
            return constant
        convert = opset.convert(constant, "f32")
        convert.get_rt_info()[_DECOMPRESSION] = ""
        return convert
