"""What a session asks of a device: the GPU, or the double that tests run on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from paddock.engines.cuda.buckets import Bucket
from paddock.engines.cuda.nccl import Place
from paddock.graph import Array, DType, Op
from paddock.graph.ops import Communicator
from paddock.graph.tensor import TensorType


@dataclass(frozen=True)
class StoredWeight:
    """A matrix in fewer bits, [outputs, inputs], which products read as it is.

    `kind` i8 and i4 (packed two a byte, low half first) have f16 scales [outputs, groups]; f8 has
    e4m3 as u8 and an f32 scale for each output.
    """

    kind: str
    values: Any
    scales: Any
    dtype: DType  # of what it stands for
    shape: tuple[int, int]


@dataclass
class Instruction:
    """One op over device arrays. `values` of operands: arrays, or a `StoredWeight`."""

    op: Op
    types: tuple[TensorType, ...]  # of the operands, as the graph has them
    inputs: list[Any]
    outputs: list[Any]
    scratch: list[Any] = field(default_factory=list)
    name: str = ""
    bucket: Bucket | None = None
    """The step's sizes; None where they do not matter."""
    gives_e4m3: bool = False
    """The result is kept as its readers, products in fp8, want it (`lowering.e4m3_in`)."""
    takes_e4m3: bool = False
    """The first operand is kept so."""

    @property
    def decodes(self) -> bool:
        """Whether the step has one token of each sequence."""
        return self.bucket is not None and self.bucket.decodes


class Event(Protocol):
    def synchronize(self) -> None: ...


class Device(Protocol):
    """Work is enqueued in order; only `Event.synchronize` waits."""

    max_blocks: int
    """The most cache blocks of one sequence that steps may have."""

    def memory(self, fraction: float) -> tuple[int, int]:
        """Free and total bytes, of a share of the device."""

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """A device array. Raises `MemoryError`."""

    def upload(self, array: Array, out: Any = None, *, wait: bool = True) -> Any:
        """A device array with the host array's values: `out` where it is given.

        Without `wait` they are there, and the host array may change, after `arrived`.
        """

    def arrived(self) -> None:
        """Wait for what was uploaded without waiting."""

    def dense(self, stored: StoredWeight) -> Any:
        """The matrix that integers and scales stand for."""

    def fp8(self, weight: Any, dtype: DType) -> StoredWeight:
        """A dense matrix as e4m3 with a scale for each row."""

    def pinned(self, nbytes: int) -> Array:
        """Bytes of host memory that `write` and `read` may use."""

    def write(self, target: Any, source: Array) -> None:
        """Enqueue a copy of host bytes to the start of a device array."""

    def read(self, target: Array, source: Any) -> None:
        """Enqueue a copy of a device array to the host."""

    def mark(self) -> Event:
        """A point behind all that was enqueued."""

    def cache(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Blocks of a cache slot, in the device's own layout."""

    def execute(self, instructions: Sequence[Instruction]) -> None:
        """Enqueue instructions."""

    def capture(self, instructions: Sequence[Instruction]) -> Callable[[], None]:
        """What enqueues all of them at once, over the same arrays."""

    def join(self, place: Place, communicator: Communicator) -> None:
        """Meet the devices of the ranks that this one exchanges with, which all call this."""

    def close(self) -> None:
        """Wait, and give back what is held."""
