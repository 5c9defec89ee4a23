"""A mesh in one process: threads are ranks, queues and barriers the wire between them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from paddock.engines import reference
from paddock.engines.protocol import StepInputs, WeightSource
from paddock.engines.reference.engine import ReferenceSession
from paddock.graph import Array, DType, Graph, Mesh, Module
from paddock.layers import trace
from paddock.models.registry import Architecture
from tests.models.bound_arrays import BoundArrays

_TIMEOUT_S = 120.0


class Wire:
    """What the ranks of a `tp` x `pp` mesh share."""

    def __init__(self, tp: int, pp: int) -> None:
        self.shares: list[list[Array | None]] = [[None] * tp for _ in range(pp)]
        self.barriers = [threading.Barrier(tp, timeout=_TIMEOUT_S) for _ in range(pp)]
        # What (stage, tensor-parallel rank) sends to the stage behind it.
        self.links: dict[tuple[int, int], queue.Queue[Array]] = {
            (stage, rank): queue.Queue() for stage in range(pp) for rank in range(tp)
        }

    def abort(self) -> None:
        """Wake every rank that waits, after one has failed."""
        for barrier in self.barriers:
            barrier.abort()


class Rank:
    """One rank's `Communicator`."""

    def __init__(self, wire: Wire, mesh: Mesh) -> None:
        self._wire, self._mesh = wire, mesh

    def all_reduce(self, x: Array) -> Array:
        total: Array = np.sum(self._all(x), axis=0)
        return total

    def all_gather(self, x: Array) -> Array:
        return np.concatenate(self._all(x), axis=-1)

    def send(self, x: Array) -> None:
        self._wire.links[self._mesh.pp_rank, self._mesh.tp_rank].put(x)

    def receive(self, x: Array) -> None:
        sent = self._wire.links[self._mesh.pp_rank - 1, self._mesh.tp_rank].get(timeout=_TIMEOUT_S)
        assert sent.shape == x.shape
        assert sent.dtype == x.dtype
        x[...] = sent

    def _all(self, x: Array) -> list[Array]:
        stage = self._mesh.pp_rank
        self._wire.shares[stage][self._mesh.tp_rank] = x
        self._wire.barriers[stage].wait()
        shares = [s for s in self._wire.shares[stage] if s is not None]
        self._wire.barriers[stage].wait()  # nobody writes before all have read
        return shares


class MeshSession:
    """All ranks of a model as one session."""

    def __init__(
        self,
        architecture: Architecture,
        checkpoint: Mapping[str, Array],
        *,
        tp: int,
        pp: int,
        max_context: int,
        block_size: int = 4,
        bind: Callable[[Module, Mesh], WeightSource] | None = None,
    ) -> None:
        """`bind`: a rank's weights; by default of `checkpoint`, by the names of Llama."""
        self.meshes = list(Mesh(tp=tp, pp=pp).ranks())
        self.wire = Wire(tp, pp)
        self.graphs: dict[Mesh, Graph] = {}
        self.weights: dict[Mesh, Any] = {}
        self.sessions: dict[Mesh, ReferenceSession] = {}
        for mesh in self.meshes:
            model = architecture.build()
            graph = trace(model, dtype=DType.F32, max_context=max_context, mesh=mesh)
            weights = bind(model, mesh) if bind else BoundArrays(model, checkpoint, mesh)
            self.graphs[mesh], self.weights[mesh] = graph, weights
            self.sessions[mesh] = reference.build(graph, {}).open(
                weights, {"block_size": block_size}, Rank(self.wire, mesh)
            )
        last = self.sessions[self.meshes[-1]]
        self.vocab_size, self.block_size = last.vocab_size, block_size
        self.block_bytes = sum(s.block_bytes for s in self.sessions.values())
        self.state_bytes = sum(s.state_bytes for s in self.sessions.values())
        self._threads = ThreadPoolExecutor(len(self.meshes))

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        for session in self.sessions.values():
            session.allocate_cache(blocks, slots)

    def run(self, step: StepInputs) -> Array:
        """The logits, after checking that every rank of the last stage has the same."""
        futures = {m: self._threads.submit(self._run_rank, m, step) for m in self.meshes}
        results = {m: future.result(2 * _TIMEOUT_S) for m, future in futures.items()}
        last = [result for mesh, result in results.items() if mesh.is_last]
        for other in last[1:]:
            np.testing.assert_array_equal(other, last[0])
        return last[0]

    def close(self) -> None:
        self._threads.shutdown()

    def _run_rank(self, mesh: Mesh, step: StepInputs) -> Array:
        try:
            return self.sessions[mesh].run(step)
        except BaseException:
            self.wire.abort()
            raise
