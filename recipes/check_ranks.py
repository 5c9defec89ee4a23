"""Hold a build of several ranks against the reference engine, before it is published.

The ranks run as threads of this process, with their real engine and weights. What they are held
against is the whole model on one rank, with weights put together from all ranks' shares: so it
finds a wrong division, a wrong share and a wrong exchange alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from paddock.engines import reference
from paddock.engines.protocol import EngineKind, RankEngine, Rounding, Session
from paddock.engines.reference.rounding import rounded
from paddock.graph import DType, Mesh
from paddock.graph.ops import Communicator
from paddock.recipes import verify
from paddock.recipes.tracing import Traced
from paddock.runtime.distributed.in_process import InProcessSession
from paddock.weights.bound import BoundWeights
from paddock.weights.merged import ChainedWeights, MergedWeights

Retrace = Callable[[DType, int, Mesh, bool], Traced]
"""The first layers of the model, as a rank of that mesh computes it, quantized or not."""


class RanksCheck:
    """`folders` hold each rank's built engine, `weights` what it was bound to."""

    def __init__(
        self,
        kind: EngineKind,
        options: Mapping[str, Any],
        ranks: Sequence[Traced],
        folders: Sequence[Path],
        weights: Sequence[BoundWeights],
        retrace: Retrace,
    ) -> None:
        self._kind, self._options, self._ranks = kind, options, ranks
        self._folders, self._weights, self._retrace = folders, weights, retrace
        self._shape = ranks[0].mesh

    def run(self, layers: int, vocab_size: int | None) -> verify.Check:
        """Compare `layers` of the model (0: none); all of it runs. Raises `BuildError`."""
        first = self._ranks[0]
        asked = verify.Asked.of(first.graph, vocab_size)
        whole = layers == first.layers
        if not whole:
            session = InProcessSession(self._shape, self._open)
            try:
                verify.run(session, asked)
            finally:
                session.close()
        if not layers:
            return verify.Check(0, 0.0, 0.0, 0.0)
        # The first layers alone need no stages.
        mesh = self._shape if whole else Mesh(tp=self._shape.tp)
        slots = dict(first.module.named_parameters())
        meshes = [rank.mesh for rank in self._ranks]
        merged = MergedWeights(slots, list(zip(meshes, self._weights, strict=True)))
        exact = self._retrace(DType.F32, layers, Mesh(), False)
        expected = verify.Expected(exact.graph, self._rounded(mesh, layers), merged, vocab_size)
        session = InProcessSession(mesh, self._open if whole else self._opener(layers))
        try:
            return expected.check(session, layers=layers)
        finally:
            session.close()

    def _open(self, rank: Mesh, communicator: Communicator) -> Session:
        engine = cast(RankEngine, self._kind.load(self._folders[rank.rank]))
        return engine.open(self._weights[rank.rank], self._options, communicator)

    def _opener(self, layers: int) -> Callable[[Mesh, Communicator], Session]:
        def open_rank(rank: Mesh, communicator: Communicator) -> Session:
            graph = self._retrace(self._ranks[0].dtype, layers, rank, True).graph
            engine = cast(RankEngine, self._kind.build(graph, self._options))
            return engine.open(self._chained(rank), self._options, communicator)

        return open_rank

    def _rounded(self, mesh: Mesh, layers: int) -> Session | None:
        """The reference engine's own ranks with this engine's rounding, where it rounds."""
        capabilities = self._kind.CAPABILITIES
        rounding = capabilities.rounding(self._ranks[0].graph, self._options)
        if rounding == Rounding(DType.F32):
            return None

        def open_rank(rank: Mesh, communicator: Communicator) -> Session:
            graph = rounded(self._retrace(rounding.dtype, layers, rank, True).graph, rounding)
            source = verify.InTypesOf(graph, self._chained(rank))
            return reference.build(graph, {}).open(source, {}, communicator)

        return InProcessSession(mesh, open_rank)

    def _chained(self, rank: Mesh) -> ChainedWeights:
        """Of all stages that a tensor-parallel rank has."""
        return ChainedWeights(self._weights[rank.tp_rank :: self._shape.tp])
