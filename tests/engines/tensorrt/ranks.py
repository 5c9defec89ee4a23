"""Ranks of a mesh in one process: a network for each, evaluated in threads that meet."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from paddock.engines.protocol import StepInputs
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import Array, DType, Mesh
from tests.engines.tensorrt.networks import Model, session_of

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


class RanksSession:
    """Tensor-parallel ranks as one session, in which all ranks must come to the same logits."""

    def __init__(self, flavour: Flavour, name: str, tp: int, dtype: DType = DType.F32) -> None:
        self.meeting = Meeting(tp)
        self.models = [Model(name, dtype, mesh=Mesh(tp=tp, tp_rank=rank)) for rank in range(tp)]
        self.sessions: list[TensorRTSession] = [
            session_of(
                flavour,
                model,
                collective=partial(self.meeting.of, rank),
            )
            for rank, model in enumerate(self.models)
        ]
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
