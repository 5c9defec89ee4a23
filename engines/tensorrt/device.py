"""Memory and a stream of one GPU, through CuPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from paddock.engines.protocol import BuildError
from paddock.graph import Array

GIB = 1 << 30


@dataclass
class Buffer:
    """Device memory; it is given back when the buffer is dropped."""

    address: int
    nbytes: int
    owner: object


class Device(Protocol):
    """What a session needs of a GPU. All but `synchronize` only queue work on `stream`."""

    stream: int

    def allocate(self, nbytes: int, what: str, remedy: str) -> Buffer:
        """Zeroed memory. Raises `BuildError` where there is not enough: for `what`, and the
        `remedy`, the setting that makes it need less."""

    def upload(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        """Copy a contiguous array, which must not change before `synchronize`."""

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy between two addresses of the device that are apart."""

    def download(self, buffer: Buffer, array: Array) -> None:
        """Copy into a contiguous array, which has the values after `synchronize`."""

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""

    def free_bytes(self) -> int:
        """Memory that could be allocated now."""


class CupyDevice:
    """The current device of CuPy, with a stream of its own."""

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise BuildError(
                f"the tensorrt engine runs through CuPy, which cannot be loaded ({error}): pip"
                " install 'paddock[tensorrt]', or 'paddock[rtx]'"
            ) from error
        self._cupy: Any = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self.stream = int(self._stream.ptr)

    def allocate(self, nbytes: int, what: str, remedy: str) -> Buffer:
        cupy = self._cupy
        try:
            memory = cupy.cuda.alloc(max(nbytes, 1))
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise out_of_memory(nbytes, self.free_bytes(), what, remedy) from error
        cupy.cuda.runtime.memsetAsync(memory.ptr, 0, max(nbytes, 1), self.stream)
        return Buffer(int(memory.ptr), nbytes, memory)

    def upload(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(
            buffer.address + offset,
            array.ctypes.data,
            array.nbytes,
            runtime.memcpyHostToDevice,
            self.stream,
        )

    def copy(self, to: int, source: int, nbytes: int) -> None:
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(to, source, nbytes, runtime.memcpyDeviceToDevice, self.stream)

    def download(self, buffer: Buffer, array: Array) -> None:
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(
            array.ctypes.data,
            buffer.address,
            array.nbytes,
            runtime.memcpyDeviceToHost,
            self.stream,
        )

    def synchronize(self) -> None:
        self._stream.synchronize()

    def free_bytes(self) -> int:
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        return int(free) + int(self._cupy.get_default_memory_pool().free_bytes())


def out_of_memory(nbytes: int, free: int, what: str, remedy: str) -> BuildError:
    """What was asked, what was free, and which limit to lower."""
    return BuildError(
        f"the GPU has no room for {what}: {nbytes / GIB:.2f} GiB were asked,"
        f" {free / GIB:.2f} GiB are free; {remedy}"
    )
