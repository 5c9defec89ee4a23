"""The one place that speaks MPI: who the ranks are, and collectives on NumPy buffers.

Only mpi4py's upper-case calls, which move buffers as they are. Every wait is a loop that tests
and yields: ranks that share cores do not take them from each other, and a lost rank leaves
nobody inside a call that never returns.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddock.engines.protocol import BuildError
from paddock.graph import Array, Mesh

_ACTIVATIONS, _COMMANDS = 1, 2  # tags
_SPINS = 200  # tests before sleeping: about as long as a small exchange takes
_SLEEPS_S = (2e-5, 5e-5, 1e-4)
_IDLE_S = 1e-3  # the longest sleep of a rank that waits for the next step
_IN_FLIGHT = 64  # sends that nobody has taken yet


def load() -> Any:
    """mpi4py's MPI, initialized. Raises `BuildError` where it is not there."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise BuildError(
            f"MPI cannot be loaded: {error}; pip install 'paddock[mpi]' brings mpi4py and an MPI"
        ) from error
    return MPI


@dataclass(frozen=True)
class World:
    """This process among all that the launcher started."""

    rank: int
    size: int
    host: str
    local_rank: int
    """Its number among the ranks of this host: the number of its device."""
    local_size: int
    library: str
    """E.g. "MPICH Version: 5.0.2"."""
    comm: Any

    @staticmethod
    def join() -> World:
        MPI = load()
        comm = MPI.COMM_WORLD
        node = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
        _unname_shared_memory(node)
        return World(
            rank=comm.rank,
            size=comm.size,
            host=socket.gethostname(),
            local_rank=node.rank,
            local_size=node.size,
            library=" ".join(MPI.Get_library_version().split()[:4]).rstrip(","),
            comm=comm,
        )

    def broadcast(self, text: bytes | None, size: int = 4096) -> bytes:
        """Rank 0's bytes, everywhere."""
        buffer = np.zeros(size, np.uint8)
        if text is not None:
            buffer[: len(text)] = np.frombuffer(text, np.uint8)
        wait(self.comm.Ibcast(buffer, 0), idle=True)
        return buffer.tobytes().rstrip(b"\0")

    def leave(self) -> None:
        """After all others have done their part."""
        load().Finalize()


def _unname_shared_memory(node: Any) -> None:
    """Take the names of MPICH's shared memory away once all ranks of this host have it.

    MPICH does so at its end, which killed ranks never reach: each would leave a file that is never
    freed. What is mapped stays.
    """
    maps = Path("/proc/self/maps")
    node.Barrier()
    if node.rank == 0 and maps.exists():
        for path in set(re.findall(r"/dev/shm/mpich_shm_\w+$", maps.read_text(), re.MULTILINE)):
            Path(path).unlink(missing_ok=True)


class Waits:
    """Whether this process waits for other ranks now, as its pulse tells."""

    waiting = False


def wait(request: Any, *, idle: bool = False) -> None:
    """Until a non-blocking call is done; `idle` where that may take long."""
    if request.Test():
        return
    Waits.waiting = True
    try:
        tests = 0
        while not request.Test():
            tests += 1
            _pause(tests, idle)
    finally:
        Waits.waiting = False


def _pause(tests: int, idle: bool) -> None:
    if tests <= _SPINS:
        os.sched_yield()
    elif idle and tests > 2 * _SPINS:
        time.sleep(_IDLE_S)
    else:
        time.sleep(_SLEEPS_S[min((tests - _SPINS) // 64, len(_SLEEPS_S) - 1)])


class MpiCommunicator:
    """One rank's `paddock.graph.ops.Communicator` over MPI, on NumPy arrays.

    Sums of bf16 and f16 are taken in f32 and rounded once.
    """

    def __init__(self, comm: Any, mesh: Mesh) -> None:
        """`comm` holds the ranks of one mesh in their order; all of them call this together."""
        MPI = load()
        self._comm = comm
        self._mesh = mesh
        self._any_source, self._status = MPI.ANY_SOURCE, MPI.Status()
        self._tp = comm.Split(mesh.pp_rank, mesh.tp_rank)
        self._sent: deque[tuple[Any, Array]] = deque()

    def all_reduce(self, x: Array) -> Array:
        wide = _contiguous(x if x.dtype in (np.float32, np.float64) else x.astype(np.float32))
        total = np.empty_like(wide)
        wait(self._tp.Iallreduce(wide, total))
        return total if total.dtype == x.dtype else total.astype(x.dtype)

    def all_gather(self, x: Array) -> Array:
        x = _contiguous(x)
        every = np.empty((self._mesh.tp, *x.shape), x.dtype)
        wait(self._tp.Iallgather(_bytes(x), _bytes(every)))
        return np.concatenate(list(every), axis=-1)

    def reduce_scatter(self, x: Array) -> Array:
        """This rank's part, along the last axis, of the sum."""
        parts = np.split(x, self._mesh.tp, axis=-1)
        wide = np.stack([np.asarray(part, np.promote_types(np.float32, _sum(x))) for part in parts])
        part = np.empty_like(wide[0])
        wait(self._tp.Ireduce_scatter_block(wide, part))
        return part if part.dtype == x.dtype else part.astype(x.dtype)

    def broadcast(self, x: Array) -> Array:
        """The first tensor-parallel rank's x."""
        copy = np.array(x, order="C")
        wait(self._tp.Ibcast(_bytes(copy), 0))
        return copy

    def send(self, x: Array) -> None:
        copy = np.array(x, order="C")
        self._post(_bytes(copy), self._mesh.rank + self._mesh.tp, _ACTIVATIONS)

    def receive(self, x: Array) -> None:
        wait(self._comm.Irecv(_bytes(x), self._mesh.rank - self._mesh.tp, _ACTIVATIONS), idle=True)

    def tell(self, message: bytearray) -> None:
        """From the mesh's first rank to all others."""
        array = np.frombuffer(message, np.uint8)
        for rank in range(1, self._mesh.size):
            self._post(array, rank, _COMMANDS)

    def told(self, ended: Callable[[], bool]) -> bytearray | None:
        """What the first rank tells; None once `ended()`."""
        tests = 0
        while not self._comm.Iprobe(0, _COMMANDS, self._status):
            if ended():
                return None
            tests += 1
            _pause(tests, idle=True)
        message = bytearray(self._status.Get_count())
        wait(self._comm.Irecv(np.frombuffer(message, np.uint8), 0, _COMMANDS))
        return message

    def flush(self) -> None:
        """Until everything sent was taken."""
        while self._sent:
            wait(self._sent.popleft()[0], idle=True)

    def _post(self, array: Array, rank: int, tag: int) -> None:
        while self._sent and (len(self._sent) > _IN_FLIGHT or self._sent[0][0].Test()):
            wait(self._sent.popleft()[0])
        self._sent.append((self._comm.Isend(array, rank, tag), array))


def _contiguous(x: Array) -> Array:
    return np.ascontiguousarray(x)


def _sum(x: Array) -> Any:
    return x.dtype if x.dtype in (np.float32, np.float64) else np.dtype(np.float32)


def _bytes(x: Array) -> Array:
    """The same memory as bytes: MPI knows no bf16."""
    return x.reshape(-1).view(np.uint8)
