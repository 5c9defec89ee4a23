"""A graph as instructions over device arrays: what is computed once, and what each step does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from paddock.engines.cuda.buckets import Bucket
from paddock.engines.cuda.device import Instruction, StoredWeight
from paddock.engines.cuda.fused import FusedLinear
from paddock.engines.cuda.launching import Sized
from paddock.engines.cuda.lowering import gives_e4m3, scratch, takes_e4m3
from paddock.engines.cuda.memory_plan import Lifetime, plan
from paddock.graph import Graph, Tensor
from paddock.graph.ops import CacheBlocks, Dequantize, Fill, Input, Reshape, Source, StateSlots
from paddock.graph.tensor import Dim, Node, TensorType

# What no step computes: it is fed, or made when the engine opens, or a view.
CONSTANT = Source | Dequantize | Fill | Reshape


class Program:
    """The nodes that run in a step, and the values that no step changes.

    `constants` holds an array or a `StoredWeight` for each tensor of weights.
    """

    def __init__(self, graph: Graph, constants: Mapping[Tensor, Any]) -> None:
        self.graph, self.constants = graph, constants
        self.nodes = [n for n in graph.nodes if not isinstance(n.op, CONSTANT)]
        self.inputs = [n for n in graph.nodes if isinstance(n.op, Input)]
        self.caches = [n for n in graph.nodes if isinstance(n.op, CacheBlocks | StateSlots)]

    def arena_bytes(self, bucket: Bucket, table: int) -> int:
        """The memory that a step of this bucket needs for its values."""
        return self._plan(bucket, table)[1]

    def bind(
        self,
        bucket: Bucket,
        table: int,
        step: Mapping[str, Any],
        caches: Mapping[str, Any],
        arena: Any,
    ) -> tuple[list[Instruction], Any]:
        """Instructions over these arrays, and the array of the graph's first output.

        `step` has an array of the bucket's size under each input's key; `caches` has blocks and
        states; `table` is the size of the block table; `arena` holds `arena_bytes` bytes.
        """
        places, _ = self._plan(bucket, table)
        sizes = bucket.sizes(table)
        rounded = rounded_once(self.graph, lambda node: self._sized(node, sizes, bucket))
        values: dict[Tensor, Any] = dict(self.constants)
        for node in self.inputs:
            assert isinstance(node.op, Input)
            values[node.outputs[0]] = step[node.op.key]
        for node in self.caches:
            assert isinstance(node.op, CacheBlocks | StateSlots)
            values[node.outputs[0]] = caches[node.op.key]

        def view(offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
            count = prod(shape) * dtype.itemsize
            return arena[offset : offset + count].view(dtype).reshape(shape)

        instructions: list[Instruction] = []
        for node in self.graph.nodes:
            if isinstance(node.op, Reshape):
                x = values[node.inputs[0]]
                values[node.outputs[0]] = x.reshape(x.shape[0], *node.op.tail)
            if node not in places:
                continue
            offsets = iter(places[node])
            for tensor in node.outputs:
                shape = _shape(tensor.type, sizes)
                values[tensor] = view(next(offsets), shape, tensor.dtype.numpy)
            rooms = scratch(self._sized(node, sizes, bucket))
            instructions.append(
                Instruction(
                    node.op,
                    tuple(t.type for t in node.inputs),
                    [values[t] for t in node.inputs],
                    [values[t] for t in node.outputs],
                    [view(next(offsets), shape, dtype) for shape, dtype in rooms],
                    f"{node.path}: {node.op.name}",
                    bucket,
                    gives_e4m3=node.outputs[0] in rounded,
                    takes_e4m3=bool(node.inputs) and node.inputs[0] in rounded,
                )
            )
        return instructions, values[self.graph.outputs[0]]

    def _sized(self, node: Node, sizes: Mapping[Dim, int], bucket: Bucket) -> Sized:
        types = tuple(_sized_type(t.type, sizes) for t in node.inputs)
        weight = self.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        stored = weight if isinstance(weight, StoredWeight) else None
        return Sized(node.op, types, stored, bucket.singles)

    def _plan(self, bucket: Bucket, table: int) -> tuple[dict[Node, list[int]], int]:
        """For each node the offsets of its results, then of its scratch memory."""
        sizes = bucket.sizes(table)
        index = {id(node): i for i, node in enumerate(self.nodes)}
        root: dict[Tensor, Tensor] = {}  # what a view is a view of
        last: dict[Tensor, int] = {}
        for node in self.graph.nodes:
            if isinstance(node.op, Reshape):
                root[node.outputs[0]] = root.get(node.inputs[0], node.inputs[0])
            elif id(node) in index:
                for tensor in node.inputs:
                    last[root.get(tensor, tensor)] = index[id(node)]
        for tensor in self.graph.outputs:
            last[root.get(tensor, tensor)] = len(self.nodes)
        lifetimes: list[Lifetime] = []
        owners: list[Node] = []
        for i, node in enumerate(self.nodes):
            for tensor in node.outputs:
                nbytes = prod(_shape(tensor.type, sizes)) * tensor.dtype.numpy.itemsize
                lifetimes.append(Lifetime(i, last.get(tensor, i), nbytes))
                owners.append(node)
            for shape, dtype in scratch(self._sized(node, sizes, bucket)):
                lifetimes.append(Lifetime(i, i, prod(shape) * dtype.itemsize))
                owners.append(node)
        made = plan(lifetimes)
        places: dict[Node, list[int]] = {node: [] for node in self.nodes}
        for node, offset in zip(owners, made.offsets, strict=True):
            places[node].append(offset)
        return places, made.nbytes


def rounded_once(graph: Graph, sized: Callable[[Node], Sized]) -> set[Tensor]:
    """Results that nothing but products in fp8 multiply: their makers round them, in place.

    Rounding them where they are made spares the memory a round trip of what is the widest of a
    layer. `sized` gives a node's sizes.
    """
    readers: dict[Tensor, list[bool]] = {tensor: [False] for tensor in graph.outputs}
    for node in graph.nodes:
        for place, tensor in enumerate(node.inputs):
            takes = place == 0 and isinstance(node.op, FusedLinear) and takes_e4m3(sized(node))
            readers.setdefault(tensor, []).append(takes)
    return {
        node.outputs[0]
        for node in graph.find(FusedLinear)
        if all(readers.get(node.outputs[0], [False])) and gives_e4m3(sized(node))
    }


def _shape(kind: TensorType, sizes: Mapping[Dim, int]) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else sizes[d] for d in kind.shape)


def _sized_type(kind: TensorType, sizes: Mapping[Dim, int]) -> TensorType:
    return TensorType(
        kind.dtype, tuple(d if isinstance(d, int) else sizes.get(d, d) for d in kind.shape)
    )
