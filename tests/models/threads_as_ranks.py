"""A parity case's mesh in one process: threads are ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from paddock.engines import reference
from paddock.engines.protocol import Session, StepInputs, WeightSource
from paddock.graph import Array, DType, Graph, Mesh, Module
from paddock.graph.ops import Communicator
from paddock.layers import trace
from paddock.models.registry import Architecture
from paddock.runtime.distributed.in_process import InProcessSession
from tests.models.bound_arrays import BoundArrays

_TIMEOUT_S = 120.0


class MeshSession(InProcessSession):
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
        engine: Any = reference,
    ) -> None:
        """`bind`: a rank's weights; by default of `checkpoint`, by the names of Llama."""
        self.graphs: dict[Mesh, Graph] = {}
        self.weights: dict[Mesh, Any] = {}
        options = {"block_size": block_size, "threads": 1}
        mesh = Mesh(tp=tp, pp=pp)
        for rank in mesh.ranks():
            model = architecture.build()
            self.graphs[rank] = trace(model, dtype=DType.F32, max_context=max_context, mesh=rank)
            weights = bind(model, rank) if bind else BoundArrays(model, checkpoint, rank)
            self.weights[rank] = weights

        def open_rank(rank: Mesh, communicator: Communicator) -> Session:
            built = engine.build(self.graphs[rank], options)
            session: Session = built.open(self.weights[rank], options, communicator)
            return session

        super().__init__(mesh, open_rank, timeout_s=_TIMEOUT_S)

    def run(self, step: StepInputs) -> Array:
        """The logits, after checking that every rank of the last stage has the same."""
        results = self._together([partial(s.run, step) for s in self.sessions])
        last = [r for mesh, r in zip(self.meshes, results, strict=True) if mesh.is_last]
        for other in last[1:]:
            np.testing.assert_array_equal(other, last[0])
        return last[0]
