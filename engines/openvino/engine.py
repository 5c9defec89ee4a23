"""The openvino engine behind the common protocol.

A model with paged attention can be compiled but not read back from OpenVINO's own files, so an
engine folder holds the graph, and opening compiles it over the weights where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov
from openvino import op

from paddock.engines.openvino.lowering import lowers
from paddock.engines.openvino.session import OpenVINOSession
from paddock.engines.protocol import BuildError, Capabilities, WeightSource
from paddock.graph import DType, Graph, GraphError
from paddock.graph.ops import Attention
from paddock.graph.passes import run_passes
from paddock.graph.passes.expand import expand
from paddock.graph.passes.remove_dead import remove_dead
from paddock.graph.passes.split_fused_linears import RULES as SPLIT_FUSED_LINEARS
from paddock.graph.serialize import from_json, to_json

NAME = "openvino"
CAPABILITIES = Capabilities(
    dtypes=(DType.F32, DType.BF16),
    quantization=(DType.I8, DType.I4),
    cache_dtypes=("auto", "f32", "f16", "bf16", "u8"),
)


def version() -> str:
    return f"openvino {ov.__version__}"


def build(graph: Graph, options: Mapping[str, Any]) -> OpenVINOEngine:
    """Rewrite the graph for this engine and check that every op has a lowering."""
    _check_binding()
    try:
        graph = expand(graph, NAME, lowers)
        # Unfused, each projection is a checkpoint tensor that is read where it lies.
        graph = run_passes(graph, [("split_fused_linears", SPLIT_FUSED_LINEARS), remove_dead])
    except GraphError as error:
        raise BuildError(str(error)) from error
    capped = next((n for n in graph.find(Attention) if n.op.attributes["soft_cap"]), None)
    if capped is not None:
        raise BuildError(
            f"{capped.where}: OpenVINO's paged attention has no soft cap on scores; use"
            " engine=reference for this model"
        )
    return OpenVINOEngine(graph)


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

    def open(self, weights: WeightSource, options: Mapping[str, Any]) -> OpenVINOSession:
        """Compile over the weights. `options`: threads, cache_dtype."""
        _check_binding()
        return OpenVINOSession(self.graph, weights, options)


def _check_binding() -> None:
    """Paged attention is reached through a private name that may change between releases."""
    if not hasattr(op, "_PagedAttentionExtension"):
        raise BuildError(
            f"openvino {ov.__version__} has no op._PagedAttentionExtension; Paddock is made for"
            " 2026.4: pip install 'openvino==2026.4.*'"
        )
