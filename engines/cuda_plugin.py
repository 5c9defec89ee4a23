"""An op's own CUDA source, compiled by NVRTC when it is first launched.

The engines cuda and tensorrt share it: it needs addresses and a stream, whosever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from paddock.engines.protocol import BuildError
from paddock.graph import CudaSource, DType, Op, TensorType

HEADER = Path(__file__).resolve().parent / "cuda" / "kernels" / "common.cuh"
TYPE = {DType.F32: 0, DType.F16: 1, DType.BF16: 2}
"""What kernels are compiled for; `common.cuh` has the same numbers."""


def code_of(source: CudaSource) -> str:
    """What NVRTC is given."""
    return f"{HEADER.read_text('utf-8')}\n{source.code}"


def options(operands: Sequence[TensorType]) -> tuple[str, ...]:
    """NVRTC's options: `T` is the type of the first operand of floats, f32 where there is none."""
    floats = [t.dtype for t in operands if t.dtype in TYPE]
    return "-std=c++17", f"-DTYPE={TYPE[floats[0]] if floats else 0}"


def launch(op: Op, operands: Sequence[TensorType], addresses: Sequence[int], stream: int) -> None:
    """Enqueue the op's kernel on a CUDA stream.

    `operands` have all sizes known; `addresses` are those of the operands, then of the results.
    Raises `BuildError` with NVRTC's words where the source does not compile.
    """
    import cupy

    source = op.cuda_source
    assert source is not None
    how = source.launch(op, *operands)
    if 0 in how.grid:
        return  # a step of no tokens
    kernel = _kernel(op.name, source, options(operands))
    grid = (*how.grid, 1, 1)[:3]
    with cupy.cuda.Stream.from_external(_Stream(stream)):
        kernel(grid, (how.block, 1, 1), (*addresses, *how.scalars), shared_mem=how.shared)


@dataclass(frozen=True)
class _Stream:
    """A stream of another library's, as CuPy takes it from the 14th version on."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@cache
def _kernel(op: str, source: CudaSource, chosen: tuple[str, ...]) -> Any:
    import cupy

    module = cupy.RawModule(code=code_of(source), options=chosen, backend="nvrtc")
    try:
        return module.get_function(source.kernel)
    except cupy.cuda.compiler.CompileException as error:
        words = str(error).splitlines()[:8]
        raise BuildError("\n    ".join([f"the CUDA source of {op}:", *words])) from error
