"""The cuda engine behind the common protocol.

An engine folder holds the graph; kernels are compiled, and steps captured, over the opened weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from paddock.engines.cuda.device import Device, StoredWeight
from paddock.engines.cuda.fusion import PASSES
from paddock.engines.cuda.lowering import lowers
from paddock.engines.cuda.nccl import Place
from paddock.engines.cuda.session import CUDASession
from paddock.engines.cuda.weights import constants
from paddock.engines.protocol import BuildError, Capabilities, StepInputs, WeightSource
from paddock.graph import DType, Graph, GraphError
from paddock.graph.ops import (
    AllGather,
    Cast,
    Collective,
    Communicator,
    Input,
    Receive,
    ReduceScatter,
    Send,
)
from paddock.graph.passes import run_passes
from paddock.graph.passes.expand import expand
from paddock.graph.serialize import from_json, to_json

NAME = "cuda"
CAPABILITIES = Capabilities(
    dtypes=(DType.BF16, DType.F16, DType.F32),
    quantization=(DType.I8, DType.I4),
    cache_dtypes=("auto", "fp8"),
    collectives=True,
    gpu=True,
)
_STEP = tuple(field.name for field in fields(StepInputs))


def version() -> str:
    """CuPy's, which brings the compiler and the libraries."""
    for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        try:
            return f"cupy {version_of(name)}"
        except PackageNotFoundError:
            continue
    return "no cupy"


def build(graph: Graph, options: Mapping[str, Any]) -> CUDAEngine:
    """Rewrite the graph for this engine and check that every op has a lowering. Needs no GPU."""
    try:
        graph = run_passes(expand(graph, NAME, lowers), PASSES)
    except GraphError as error:
        raise BuildError(str(error)) from error
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Input) and op.key not in _STEP:
            raise BuildError(
                f"{node.where}: the step has no array {op.key!r}; it has {', '.join(_STEP)}"
            )
        if isinstance(op, Cast) and DType.F32 not in (op.dtype, node.inputs[0].dtype):
            raise BuildError(
                f"{node.where}: the engine cuda casts to and from f32, not from"
                f" {node.inputs[0].dtype} to {op.dtype}"
            )
    return CUDAEngine(graph)


def load(folder: Path) -> CUDAEngine:
    """The engine that `save` wrote."""
    file = folder / "graph.json"
    try:
        return CUDAEngine(from_json(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, GraphError) as error:
        raise BuildError(f"{file}: {error}; build the engine again") from error


class CUDAEngine:
    """A graph of ops that the lowering table has."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def save(self, folder: Path) -> None:
        (folder / "graph.json").write_text(to_json(self.graph), "utf-8")

    def open(
        self,
        weights: WeightSource,
        options: Mapping[str, Any],
        communicator: Communicator | None = None,
        *,
        device: Device | None = None,
    ) -> CUDASession:
        """Bring the weights to the GPU. `options`: `block_size`, `precision`, `machine`.

        `precision` "fp8" keeps the matrices of products as e4m3 with a scale for each row, and
        gives what is multiplied with them the same form. `machine` is a folder in which the
        engine remembers what it finds out about this machine: which algorithms were fastest.
        `device` is the double of tests. Where the graph has collectives, `communicator` lets the
        GPUs of all ranks find each other, and with the option `own_gpu` NCCL is used from then on;
        without it ranks share one GPU, and the host exchanges for them.
        """
        from paddock.engines.cuda.gpu import GPU

        if device is None:
            folder = options.get("machine")
            device = GPU(
                tuned=Path(folder) / "products.json" if folder else None,
                own=bool(options.get("own_gpu")),
            )
        place = _place(self.graph)
        if not place.alone:
            if communicator is None:
                many = "several" if place.ranks is None else place.ranks
                raise BuildError(f"the graph is of {many} ranks; they open together")
            device.join(place, communicator)
        shrink = None
        if options.get("precision") == "fp8":

            def shrink(weight: Any, dtype: DType, key: str) -> StoredWeight | None:
                rows, columns = weight.shape
                fits = dtype in (DType.BF16, DType.F16) and rows % 16 == columns % 16 == 0
                return device.fp8(weight, dtype) if fits and columns <= 32768 else None

        return CUDASession(
            self.graph, constants(self.graph, weights, device, shrink), options, device
        )


def _place(graph: Graph) -> Place:
    """What a rank's graph exchanges."""
    ops = [node.op for node in graph.find(Collective)]
    told = [op.ranks for op in ops if isinstance(op, AllGather | ReduceScatter)]
    return Place(
        shares=any(not isinstance(op, Send | Receive) for op in ops),
        ranks=told[0] if told else None,
        receives=any(isinstance(op, Receive) for op in ops),
        sends=any(isinstance(op, Send) for op in ops),
    )
