"""CUDA C++ of an op's own, as data: what the engines cuda and tensorrt compile and launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paddock.graph.errors import GraphError


@dataclass(frozen=True)
class Launch:
    """How a kernel is started for operands of given sizes."""

    grid: tuple[int, ...]
    """Blocks, in up to three directions."""
    block: int
    """Threads of a block."""
    scalars: tuple[Any, ...] = ()
    """NumPy numbers of the types that the kernel declares, behind operands and results."""
    shared: int = 0
    """Bytes of dynamic shared memory."""


@dataclass(frozen=True)
class CudaSource:
    """A kernel, `extern "C" __global__ void <kernel>(operands..., results..., scalars...)`.

    Operands and results come as addresses of contiguous arrays, which do not overlap. Before `code`
    stands `engines/cuda/kernels/common.cuh`, in which `T` is the element type of the op's first
    operand of floats, `wide(x)` an element as float, `narrow<T>(x)` a float rounded once, and
    `block_sum`, `block_max` are over the threads of a block.

    `launch(op, *operands)` is given the operands' types with all sizes known.
    """

    code: str
    kernel: str
    launch: Callable[..., Launch]

    def __post_init__(self) -> None:
        if self.kernel not in self.code:
            raise GraphError(f"the CUDA source has no kernel {self.kernel!r}")
