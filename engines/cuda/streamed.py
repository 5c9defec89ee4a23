"""Products of 2 to 8 rows in fp8, whose weight streams through shared memory (`streamed.cu`)."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.cuda.device import Instruction
from paddock.engines.cuda.fused import FusedLinear
from paddock.engines.cuda.launching import NUMBER, Sized
from paddock.engines.cuda_plugin import TYPE
from paddock.graph import DType

if TYPE_CHECKING:
    from paddock.engines.cuda.gpu import GPU

# Measured on an H200: one row is faster in `few_rows.cu` and `one_row.cu`, more than 8 in cuBLASLt.
LEAST_ROWS, MOST_ROWS = 2, 8
SHARED = 218 * 1024  # bytes; beyond, x does not fit beside the ring and what is static


def streams(sized: Sized, capability: int) -> bool:
    """Whether `streamed.cu` takes the product."""
    x, weight = sized.types[:2]
    rows, inputs, outputs = x.size(0), x.size(1), weight.size(0)
    if capability < 90 or not LEAST_ROWS <= rows <= MOST_ROWS:
        return False
    if sized.weight is None or sized.weight.kind != "f8":
        return False
    if x.dtype not in (DType.F16, DType.BF16) or inputs % 64 or outputs < 2:
        return False
    return _shared(rows, inputs) <= SHARED


def emit_streamed(
    gpu: GPU, i: Instruction, sized: Sized, norm: Any, bias: Any, residual: Any
) -> None:
    """Enqueue the product."""
    linear, stored, dtype = i.op, sized.weight, sized.types[0].dtype
    assert isinstance(linear, FusedLinear)
    assert stored is not None
    x = i.inputs[0]
    rows, inputs = x.shape
    outputs = stored.shape[0]
    stages, piece = _ring(rows)
    made, columns = (outputs, 16) if linear.gate is None else (outputs // 2, 8)
    gpu.launch(
        gpu.function(
            "streamed",
            "streamed",
            TYPE=TYPE[dtype],
            ROWS=_padded(rows),
            NORM=int(norm is not None),
            STAGES=stages,
            PIECE=piece,
        ),
        (min(gpu.processors, ceil(made / columns)),),
        384,
        x,
        stored.values,
        stored.scales,
        norm,
        np.float32(linear.norm_eps or 0.0),
        bias,
        residual,
        i.outputs[0],
        np.int32(rows),
        np.int32(outputs),
        np.int32(inputs),
        np.int32(-1 if linear.gate is None else NUMBER[linear.gate]),
        np.int32(linear.dtype is DType.F32),
        shared=_shared(rows, inputs),
    )


def _ring(rows: int) -> tuple[int, int]:
    """Pieces, and bytes of each of their 16 rows: what was fastest on an H200."""
    return (3, 2048) if rows <= 4 else (8, 1024)


def _padded(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _shared(rows: int, inputs: int) -> int:
    """The ring, spread over the banks, and x with 8 elements behind each row."""
    stages, piece = _ring(rows)
    return stages * 16 * (piece + 64) + _padded(rows) * (inputs + 8) * 2
