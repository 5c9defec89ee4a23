"""All ranks of an engine in one process: threads are ranks.

Real collectives of a real engine, without processes: what a build is checked with.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from paddock.engines.protocol import Session, StepInputs
from paddock.graph import Array, Mesh
from paddock.graph.ops import Communicator

TIMEOUT_S = 600.0

Result = TypeVar("Result")


class Wire:
    """What the ranks of a mesh share."""

    def __init__(self, mesh: Mesh, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self.shares: list[list[Array | None]] = [[None] * mesh.tp for _ in range(mesh.pp)]
        self.barriers = [threading.Barrier(mesh.tp, timeout=timeout_s) for _ in range(mesh.pp)]
        # What (stage, tensor-parallel rank) sends to the stage behind it; None after a failure.
        self.links: dict[tuple[int, int], queue.Queue[Array | None]] = {
            (m.pp_rank, m.tp_rank): queue.Queue() for m in mesh.ranks()
        }

    def abort(self) -> None:
        """Wake every rank that waits, after one has failed."""
        for barrier in self.barriers:
            barrier.abort()
        for link in self.links.values():
            link.put(None)


class ThreadCommunicator:
    """One rank's `Communicator`."""

    def __init__(self, wire: Wire, mesh: Mesh) -> None:
        self._wire, self._mesh = wire, mesh

    def all_reduce(self, x: Array) -> Array:
        shares = self._all(x)
        total: Array = np.sum(shares, axis=0, dtype=np.float32).astype(x.dtype)
        return total if x.dtype.itemsize <= 4 else np.sum(shares, axis=0)

    def all_gather(self, x: Array) -> Array:
        return np.concatenate(self._all(x), axis=-1)

    def reduce_scatter(self, x: Array) -> Array:
        part = np.split(self.all_reduce(x), self._mesh.tp, axis=-1)[self._mesh.tp_rank]
        return np.ascontiguousarray(part)

    def broadcast(self, x: Array) -> Array:
        return self._all(x)[0]

    def send(self, x: Array) -> None:
        self._wire.links[self._mesh.pp_rank, self._mesh.tp_rank].put(x.copy())

    def receive(self, x: Array) -> None:
        link = self._wire.links[self._mesh.pp_rank - 1, self._mesh.tp_rank]
        sent = link.get(timeout=self._wire.timeout_s)
        if sent is None:
            raise threading.BrokenBarrierError
        if sent.shape != x.shape or sent.dtype != x.dtype:
            raise ValueError(f"{x.dtype}{x.shape} was awaited, {sent.dtype}{sent.shape} was sent")
        x[...] = sent

    def _all(self, x: Array) -> list[Array]:
        stage = self._mesh.pp_rank
        self._wire.shares[stage][self._mesh.tp_rank] = x
        self._wire.barriers[stage].wait()
        shares = [s.copy() for s in self._wire.shares[stage] if s is not None]
        self._wire.barriers[stage].wait()  # nobody writes before all have read
        return shares


class InProcessSession:
    """The ranks of `mesh` as one session; `open_rank` opens each, all at the same time."""

    def __init__(
        self,
        mesh: Mesh,
        open_rank: Callable[[Mesh, Communicator], Session],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.meshes = list(mesh.ranks())
        self._wire = Wire(mesh, timeout_s)
        self._threads = ThreadPoolExecutor(len(self.meshes))
        self.sessions: list[Session] = []
        try:
            self.sessions = self._together(
                [partial(open_rank, m, ThreadCommunicator(self._wire, m)) for m in self.meshes]
            )
        except BaseException:
            self._threads.shutdown()
            raise
        last = self.sessions[-1]
        self.vocab_size, self.block_size = last.vocab_size, last.block_size
        self.block_bytes = sum(session.block_bytes for session in self.sessions)
        self.state_bytes = sum(session.state_bytes for session in self.sessions)

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        for session in self.sessions:
            session.allocate_cache(blocks, slots)

    def run(self, step: StepInputs) -> Array:
        """The logits of the last stage's first rank."""
        results = self._together([partial(s.run, step) for s in self.sessions])
        return results[self.meshes[-1].pp_rank * self.meshes[-1].tp]

    def close(self) -> None:
        self._threads.shutdown()
        for session in self.sessions:
            session.close()

    def _together(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Each call in a thread of its own; the first error that is not another's consequence."""
        futures = [self._threads.submit(self._guarded, call) for call in calls]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def _guarded(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except BaseException:
            self._wire.abort()
            raise
