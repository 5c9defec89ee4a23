"""Memory and a stream of one GPU, through CuPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from paddock.engines import cuda_choosing
from paddock.engines.cuda_plugin import HEADER
from paddock.engines.protocol import BuildError
from paddock.graph import Array

GIB = 1 << 30


class OutOfMemory(BuildError):
    """A device has no room for what was asked of it."""


@dataclass
class Buffer:
    """Device memory; it is given back when the buffer is dropped."""

    address: int
    nbytes: int
    owner: object


class Event(Protocol):
    def synchronize(self) -> None:
        """Wait until all that was queued before it is done."""


class Device(Protocol):
    """What a session needs of a GPU. Only `synchronize` and an event's wait for what is queued on
    `stream`; all else queues."""

    stream: int

    def allocate(self, nbytes: int, what: str, remedy: str) -> Buffer:
        """Zeroed memory. Raises `OutOfMemory` where there is not enough: for `what`, and the
        `remedy`, the setting that makes it need less."""

    def pinned(self, nbytes: int) -> Array:
        """Bytes of host memory that copies run from and into while the host goes on."""

    def upload(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        """Copy a contiguous array, which must not change before `synchronize`."""

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy between two addresses of the device that are apart."""

    def download(self, buffer: Buffer, array: Array) -> None:
        """Copy into a contiguous array, which has the values after `synchronize`."""

    def choose(
        self,
        shape: tuple[int, int],
        logits: Buffer,
        best: Buffer,
        choices: Sequence[int],
        tokens: int,
        last_tokens: Buffer,
    ) -> None:
        """`ChooseTokens` over logits [rows, vocabulary]; `choices` and `tokens` are addresses.

        `best`, 8 bytes a row, is 0 before and after."""

    def fill_in(self, tokens: int, token_ids: Buffer, last_tokens: Buffer) -> None:
        """`FillIn` over so many token ids i64, in place."""

    def mark(self) -> Event:
        """A point behind all that was queued."""

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
        self.cupy_stream = self._stream = cupy.cuda.Stream(non_blocking=True)
        self.stream = int(self._stream.ptr)
        self._processors = int(cupy.cuda.Device().attributes["MultiProcessorCount"])
        self._choosing: Any = None

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

    def pinned(self, nbytes: int) -> Array:
        return np.frombuffer(self._cupy.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)

    def choose(
        self,
        shape: tuple[int, int],
        logits: Buffer,
        best: Buffer,
        choices: Sequence[int],
        tokens: int,
        last_tokens: Buffer,
    ) -> None:
        cuda_choosing.choose(
            self._launch,
            self._processors,
            shape,
            logits.address,
            best.address,
            choices,
            tokens,
            last_tokens.address,
        )

    def fill_in(self, tokens: int, token_ids: Buffer, last_tokens: Buffer) -> None:
        cuda_choosing.fill_in(self._launch, tokens, token_ids.address, last_tokens.address)

    def _launch(self, kernel: str, grid: tuple[int, ...], block: int, *arguments: Any) -> None:
        """A kernel that chooses tokens, compiled by NVRTC when the first is asked for."""
        if self._choosing is None:
            file = HEADER.with_name(f"{cuda_choosing.SOURCE}.cu")
            self._choosing = self._cupy.RawModule(
                code="\n".join(f.read_text("utf-8") for f in (HEADER, file)),
                options=("-std=c++17", "-DTYPE=0"),
                backend="nvrtc",
            )
        with self._stream:
            self._choosing.get_function(kernel)((*grid, 1, 1)[:3], (block, 1, 1), arguments)

    def mark(self) -> Event:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(self._stream)
        return event

    def synchronize(self) -> None:
        self._stream.synchronize()

    def free_bytes(self) -> int:
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        return int(free) + int(self._cupy.get_default_memory_pool().free_bytes())


def out_of_memory(nbytes: int, free: int, what: str, remedy: str) -> OutOfMemory:
    """What was asked, what was free, and which limit to lower."""
    return OutOfMemory(
        f"the GPU has no room for {what}: {nbytes / GIB:.2f} GiB were asked,"
        f" {free / GIB:.2f} GiB are free; {remedy}"
    )
