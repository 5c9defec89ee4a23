"""Host arrays to the GPU through page-locked buffers, at the rate of the link.

One thread that copies out of a mapped file has a fraction of what the link takes. Here each of
several threads has buffers and a stream of its own and waits for nobody: while one of its buffers
is sent it fills the other.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np

from paddock.graph import Array

THREADS = 8
PIECE = 8 << 20  # bytes; smaller ones cost more in waiting than they gain
ALONE = 4 << 20  # bytes up to which one thread is as good


class _Lane:
    """A thread's two buffers and its stream."""

    def __init__(self, cupy: Any) -> None:
        self._runtime = cupy.cuda.runtime
        self._memory = [cupy.cuda.alloc_pinned_memory(PIECE) for _ in range(2)]
        self._buffers = [np.frombuffer(m, np.uint8, PIECE) for m in self._memory]
        self._events = [cupy.cuda.Event(disable_timing=True) for _ in range(2)]
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._next = 0

    def send(self, source: Array, address: int) -> None:
        """Bytes, no more than a buffer holds, to the device; `source` may change on return."""
        half, self._next = self._next, 1 - self._next
        self._events[half].synchronize()  # what it held before has left
        buffer = self._buffers[half][: source.size]
        np.copyto(buffer, source)
        self._runtime.memcpyAsync(address, buffer.ctypes.data, source.size, 1, self._stream.ptr)
        self._events[half].record(self._stream)

    def finish(self) -> None:
        self._stream.synchronize()


class Uploader:
    """Copies of host arrays to the current device."""

    def __init__(self, cupy: Any) -> None:
        self._cupy, self._device = cupy, cupy.cuda.Device().id
        self._queue: queue.Queue[tuple[Array, int] | None] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._own: _Lane | None = None
        self._failure: BaseException | None = None

    def start(self, source: Array, address: int) -> None:
        """Bytes [n] to an address of the device: they are there, and `source` may change, when
        `wait` has returned."""
        if source.size <= ALONE:
            self._own = self._own or _Lane(self._cupy)
            self._own.send(source, address)
            self._own.finish()
            return
        while len(self._threads) < THREADS:
            name = f"paddock-upload-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()
        for at in range(0, source.size, PIECE):
            self._queue.put((source[at : at + PIECE], address + at))

    def wait(self) -> None:
        """Until all that was started has arrived. Raises what went wrong."""
        self._queue.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._own = None

    def _work(self) -> None:
        self._cupy.cuda.Device(self._device).use()
        lane, sent = _Lane(self._cupy), 0
        while True:
            try:
                piece = self._queue.get_nowait() if sent else self._queue.get()
            except queue.Empty:  # nothing more for now: what was sent may be counted as arrived
                lane.finish()
                for _ in range(sent):
                    self._queue.task_done()
                sent = 0
                continue
            if piece is None:
                return
            try:
                lane.send(*piece)
            except BaseException as error:
                self._failure = error
            sent += 1
