"""The reference engine behind the common protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from paddock.engines.protocol import BuildError, Capabilities, StepInputs, WeightSource
from paddock.engines.reference.evaluate import evaluate
from paddock.graph import Array, DType, Graph, GraphError, Node, Op
from paddock.graph.ops import (
    CacheBlocks,
    Collective,
    Communicator,
    Input,
    Source,
    StateSlots,
    Weight,
)
from paddock.graph.passes import expand
from paddock.graph.serialize import from_json, to_json
from paddock.graph.tensor import fixed

NAME = "reference"
CAPABILITIES = Capabilities(
    dtypes=(DType.F32, DType.F64, DType.BF16, DType.F16),
    quantization=(DType.I8, DType.I4, DType.F8E4M3),
    cache_dtypes=("auto",),
    collectives=True,
)
BLOCK_SIZE = 16
_STEP = tuple(field.name for field in fields(StepInputs))


def version() -> str:
    return f"numpy {np.__version__}"


def build(graph: Graph, options: Mapping[str, Any]) -> ReferenceEngine:
    """Any valid graph: there is nothing to compile.

    A graph traced in f64 opens with the weights of any float type and computes in f64 throughout
    (rotary angles excepted, whose f32 rounding is part of what models were trained with): the
    yardstick by which errors of other engines are measured.
    """
    try:
        graph = expand(graph, NAME, _is_defined)
        graph.verify()
    except GraphError as error:
        raise BuildError(str(error)) from error
    return ReferenceEngine(graph)


def _is_defined(op: Op) -> bool:
    """Whether the op has a NumPy definition, or needs none because it is fed."""
    return isinstance(op, Source | Collective) or type(op).compute is not Op.compute


def load(folder: Path) -> ReferenceEngine:
    file = folder / "graph.json"
    try:
        return ReferenceEngine(from_json(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, GraphError) as error:
        raise BuildError(f"{file}: {error}; build the engine again") from error


class ReferenceEngine:
    """A graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def save(self, folder: Path) -> None:
        (folder / "graph.json").write_text(to_json(self.graph), "utf-8")

    def kernels(self, weights: WeightSource, options: Mapping[str, Any]) -> dict[str, int]:
        return self.graph.count_ops()

    def open(
        self,
        weights: WeightSource,
        options: Mapping[str, Any],
        communicator: Communicator | None = None,
    ) -> ReferenceSession:
        return ReferenceSession(self.graph, weights, options, communicator)


class ReferenceSession:
    """Weights and cache as NumPy arrays. `options`: `block_size`, tokens in a cache block."""

    def __init__(
        self,
        graph: Graph,
        weights: WeightSource,
        options: Mapping[str, Any],
        communicator: Communicator | None = None,
    ) -> None:
        self.graph, self._communicator = graph, communicator
        self.block_size = int(options.get("block_size") or BLOCK_SIZE)
        self.vocab_size = graph.outputs[0].type.size(-1)
        self._caches = [op for n in graph.find(CacheBlocks) if isinstance(op := n.op, CacheBlocks)]
        self.block_bytes = sum(
            self.block_size * prod(fixed(op.shape[2:])) * op.dtype.numpy.itemsize
            for op in self._caches
        )
        self._states = [op for n in graph.find(StateSlots) if isinstance(op := n.op, StateSlots)]
        self.state_bytes = sum(
            prod(fixed(op.shape[1:])) * op.dtype.numpy.itemsize for op in self._states
        )
        self._inputs = [op for n in graph.find(Input) if isinstance(op := n.op, Input)]
        for op in self._inputs:
            if op.key not in _STEP:
                raise BuildError(f"the step has no array {op.key!r}; it has {', '.join(_STEP)}")
        self._values: dict[Source, Array] = {}
        for node in graph.find(Weight):
            assert isinstance(node.op, Weight)
            self._values[node.op] = _bound(node.op, weights)

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        for op in self._caches:
            token = fixed(op.shape[2:])
            self._values[op] = np.zeros((blocks, self.block_size, *token), op.dtype.numpy)
        for state in self._states:
            shape = fixed(state.shape[1:])
            self._values[state] = np.zeros((slots, *shape), state.dtype.numpy)

    def run(self, step: StepInputs) -> Array:
        return self.outputs(step)[0]

    def outputs(
        self,
        step: StepInputs,
        observe: Callable[[Node, tuple[Array, ...]], None] | None = None,
    ) -> tuple[Array, ...]:
        """All outputs of the graph for one step; `observe` sees every node's values."""
        for op in self._inputs:
            self._values[op] = getattr(step, op.key)
        return evaluate(self.graph, self._values, communicator=self._communicator, observe=observe)

    def close(self) -> None:
        self._values.clear()


def _bound(op: Weight, weights: WeightSource) -> Array:
    array = weights.part(op.key, op.part) if op.part else weights.whole(op.key)
    if op.dtype is DType.F64 and any(array.dtype == t.numpy for t in DType if t.is_float):
        array = array.astype(np.float64)
    if array.shape != op.shape or array.dtype != op.dtype.numpy:
        raise BuildError(
            f"{op.key}: the engine expects {op.dtype}{list(op.shape)}, the bound weights hold"
            f" {array.dtype}{list(array.shape)}; build the engine again"
        )
    return array
