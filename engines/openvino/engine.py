"""The openvino engine behind the common protocol.

A model with paged attention can be compiled but not read back from OpenVINO's own files, so an
engine folder holds the graph, and opening compiles it over the weights where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import openvino as ov

from paddock.engines.openvino.lowering import lowers
from paddock.engines.openvino.paged_attention import check_binding
from paddock.engines.openvino.rank_session import RankSession
from paddock.engines.openvino.recurrent import check_kernels
from paddock.engines.openvino.session import OpenVINOSession
from paddock.engines.openvino.settings import rounding, settings
from paddock.engines.protocol import BuildError, Capabilities, Session, StepInputs, WeightSource
from paddock.graph import DType, Graph, GraphError, Op, Tensor
from paddock.graph.ops import Collective, Communicator, Dequantize, Input, StateSlots
from paddock.graph.passes import run_passes
from paddock.graph.passes.expand import expand
from paddock.graph.passes.pattern import Match, Rewrite
from paddock.graph.passes.remove_dead import remove_dead
from paddock.graph.passes.split_fused_linears import RULES as SPLIT_FUSED_LINEARS
from paddock.graph.serialize import from_json, to_json

NAME = "openvino"
CAPABILITIES = Capabilities(
    dtypes=(DType.F32, DType.BF16),
    quantization=(DType.I8, DType.I4),
    cache_dtypes=("auto", "f32", "f16", "bf16", "u8"),
    collectives=True,
    rounding=rounding,
    # The compiler widens others, and keeps both copies: docs/decisions/0010-openvino-forms.md.
    group_scale=DType.F32,
)


_STEP = tuple(field.name for field in fields(StepInputs))


def _unless_quantized(rewrite: Rewrite) -> Rewrite:
    def guarded(match: Match) -> Tensor | tuple[Tensor, ...] | None:
        quantized = isinstance(match["weight"].node.op, Dequantize)
        return None if quantized else rewrite(match)

    return guarded


# Unfused, a projection is a checkpoint tensor that is read where it lies. Quantized weights lie
# fused in a file of ours, and fewer, larger products are faster.
UNFUSE = [(pattern, _unless_quantized(rewrite)) for pattern, rewrite in SPLIT_FUSED_LINEARS]


def version() -> str:
    return f"openvino {ov.__version__}"


def build(graph: Graph, options: Mapping[str, Any]) -> OpenVINOEngine:
    """Rewrite the graph for this engine and check that every op has a lowering."""
    check_binding()
    try:
        graph = expand(graph, NAME, _runs)
        graph = run_passes(graph, [("split_fused_linears", UNFUSE), remove_dead])
    except GraphError as error:
        raise BuildError(str(error)) from error
    for node in graph.find(Input):
        if isinstance(node.op, Input) and node.op.key not in _STEP:
            raise BuildError(
                f"{node.where}: the step has no array {node.op.key!r}; it has {', '.join(_STEP)}"
            )
    if any(True for _ in graph.find(StateSlots)):
        check_kernels()
    settings(graph, options)  # a cache type that does not go with the arithmetic fails here
    return OpenVINOEngine(graph)


def _runs(kind: Op) -> bool:
    """Whether the engine runs the op itself: lowered, or between two compiled pieces."""
    return lowers(kind) or isinstance(kind, Collective)


def load(folder: Path) -> OpenVINOEngine:
    """The engine that `save` wrote."""
    file = folder / "graph.json"
    try:
        return OpenVINOEngine(from_json(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, GraphError) as error:
        raise BuildError(f"{file}: {error}; build the engine again") from error


class OpenVINOEngine:
    """A graph of ops that the lowering table has."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def save(self, folder: Path) -> None:
        (folder / "graph.json").write_text(to_json(self.graph), "utf-8")

    def kernels(self, weights: WeightSource, options: Mapping[str, Any]) -> dict[str, int]:
        """By "layer type, kernel, precision": they are chosen when the model is compiled."""
        session = OpenVINOSession(self.graph, weights, options)
        try:
            found: dict[str, int] = session.runtime_report()["kernels"]
            return found
        finally:
            session.close()

    def open(
        self,
        weights: WeightSource,
        options: Mapping[str, Any],
        communicator: Communicator | None = None,
    ) -> Session:
        """Compile over the weights. `options`: threads, cache_dtype."""
        check_binding()
        if next(self.graph.find(Collective), None) is None:
            return OpenVINOSession(self.graph, weights, options)
        if communicator is None:
            raise BuildError("the engine is one rank's of several: it opens with a communicator")
        return RankSession(self.graph, weights, options, communicator)
