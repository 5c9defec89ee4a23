"""Ranks of a mesh in one process: a network for each, evaluated in threads that meet."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from paddock.engines.protocol import StepInputs
from paddock.engines.tensorrt.interpreter import Collective
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import Array, DType

_TIMEOUT_S = 60.0


class Meeting:
    """What the layers of all ranks exchange: NCCL's definitions of its collectives."""

    def __init__(self, ranks: int) -> None:
        self._shares: list[Array | None] = [None] * ranks
        self.barrier = threading.Barrier(ranks, timeout=_TIMEOUT_S)
        self.calls: list[list[str]] = [[] for _ in range(ranks)]

    def of(self, rank: int, operation: str, x: Array) -> Array:
        self.calls[rank].append(operation)
        self._shares[rank] = x
        self.barrier.wait()
        shares = [s for s in self._shares if s is not None]
        self.barrier.wait()  # nobody writes before all have read
        if operation == "ALL_REDUCE":
            return np.sum([s.astype(np.float32) for s in shares], axis=0).astype(x.dtype)
        if operation == "REDUCE_SCATTER":
            total = np.sum([s.astype(np.float32) for s in shares], axis=0).astype(x.dtype)
            return np.split(total, len(shares))[rank]
        if operation == "BROADCAST":
            return shares[0]
        assert operation == "ALL_GATHER"
        return np.concatenate(shares, axis=0)


class QueueLink:
    """To the neighbouring stages, of which the one before has run its step first."""

    def __init__(self, came: deque[bytes], goes: deque[bytes]) -> None:
        self._came, self._goes = came, goes

    def receive(self, address: int, count: int, dtype: DType) -> None:
        values = self._came.popleft()
        assert len(values) == count * dtype.bits // 8
        ctypes.memmove(address, values, len(values))

    def send(self, address: int, count: int, dtype: DType) -> None:
        self._goes.append(ctypes.string_at(address, count * dtype.bits // 8))


class StagesSession:
    """Pipeline stages as one session: each runs the step on what the one before made of it."""

    def __init__(self, open_stage: Callable[[int, QueueLink], TensorRTSession], pp: int) -> None:
        self.queues: list[deque[bytes]] = [deque() for _ in range(pp + 1)]
        self.sessions = [
            open_stage(stage, QueueLink(self.queues[stage], self.queues[stage + 1]))
            for stage in range(pp)
        ]
        last = self.sessions[-1]
        self.vocab_size, self.block_size = last.vocab_size, last.block_size
        self.block_bytes, self.state_bytes = 0, sum(s.state_bytes for s in self.sessions)

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        for session in self.sessions:
            session.allocate_cache(blocks, slots)

    def run(self, step: StepInputs) -> Array:
        *before, last = self.sessions
        for session in before:
            assert session.run(step).shape == (0, session.vocab_size)
        logits = last.run(step)
        assert not any(self.queues)
        return logits

    def close(self) -> None:
        for session in self.sessions:
            session.close()


class RanksSession:
    """Tensor-parallel ranks as one session, in which all ranks must come to the same logits."""

    def __init__(self, open_rank: Callable[[int, Collective], TensorRTSession], tp: int) -> None:
        self.meeting = Meeting(tp)
        self.sessions = [open_rank(rank, partial(self.meeting.of, rank)) for rank in range(tp)]
        first = self.sessions[0]
        self.vocab_size, self.block_size = first.vocab_size, first.block_size
        self.block_bytes, self.state_bytes = 0, sum(s.state_bytes for s in self.sessions)
        self._threads = ThreadPoolExecutor(tp)

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        for session in self.sessions:
            session.allocate_cache(blocks, slots)

    def run(self, step: StepInputs) -> Array:
        futures = [self._threads.submit(self._run, s, step) for s in self.sessions]
        results = [future.result(2 * _TIMEOUT_S) for future in futures]
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])
        return results[0]

    def close(self) -> None:
        self._threads.shutdown()

    def _run(self, session: TensorRTSession, step: StepInputs) -> Array:
        try:
            return session.run(step)
        except BaseException:
            self.meeting.barrier.abort()
            raise
