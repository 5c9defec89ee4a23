"""A graph with an engine's rounding put in, by which the effect of that rounding is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from paddock.engines.protocol import Rounding
from paddock.graph import Array, DType, Graph, Node, Op, Tensor, use_graph
from paddock.graph.ops import Attention, CrossAttention, Dequantize, Gather
from paddock.graph.tensor import TensorType


@dataclass(frozen=True)
class RoundToIntegers(Op):
    """x to the nearest of the values that `bits` bits hold beside a scale for every `group`.

    Groups lie along the last axis; the last may be smaller. Symmetric scales take the largest size
    to the largest integer, the others the smallest value to the lowest and the largest to the
    highest.
    """

    bits: int
    group: int
    symmetric: bool

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        columns = x.shape[-1]
        # An edge that is repeated changes neither the smallest nor the largest value.
        widths = [(0, 0)] * (x.ndim - 1) + [(0, -columns % self.group)]
        padded = np.pad(x.astype(np.float32), widths, mode="edge")
        grouped = padded.reshape(*x.shape[:-1], -1, self.group)
        if self.symmetric:
            low = np.float32(0)
            scale = np.abs(grouped).max(-1, keepdims=True) / np.float32(2 ** (self.bits - 1) - 1)
        else:
            low = grouped.min(-1, keepdims=True)
            scale = (grouped.max(-1, keepdims=True) - low) / np.float32(2**self.bits - 1)
        scale = np.where(scale > 0, scale, np.float32(1))
        rounded = np.rint((grouped - low) / scale) * scale + low
        return rounded.reshape(padded.shape)[..., :columns].astype(x.dtype)


@dataclass(frozen=True)
class RoundToFloat(Op):
    """x as if it had been stored in another float type."""

    dtype: DType

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        return x.astype(self.dtype.numpy).astype(x.dtype)


@dataclass(frozen=True)
class RoundToE4M3(Op):
    """x as if it had been stored in e4m3, of which the largest number is 448."""

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        held = np.clip(x.astype(np.float32), -448, 448).astype(ml_dtypes.float8_e4m3fn)
        return held.astype(np.float32).astype(x.dtype)


def rounded(graph: Graph, rounding: Rounding) -> Graph:
    """`graph`, traced in `rounding.dtype`, with what else the engine rounds.

    Beside integer weights, activations; on their way into the cache, keys and values.
    """
    result = Graph(graph.dtype)
    new: dict[int, Tensor] = {}
    with use_graph(result):
        for node in graph.nodes:
            given = dict(enumerate(new[id(t)] for t in node.inputs))
            with result.at(node):
                for i, op in _roundings(node, rounding):
                    given[i] = op(given[i])
                result.insert(node.op, tuple(given.values()))
            new.update(
                {id(a): b for a, b in zip(node.outputs, result.nodes[-1].outputs, strict=True)}
            )
        result.outputs = tuple(new[id(t)] for t in graph.outputs)
    return result


def _roundings(node: Node, rounding: Rounding) -> Iterator[tuple[int, Op]]:
    """Which operands of a node are rounded, and how."""
    if isinstance(node.op, Attention | CrossAttention) and rounding.fp8_cache:
        yield from ((i, RoundToE4M3()) for i in (1, 2))
    if isinstance(node.op, Attention | CrossAttention) and rounding.cache is not None:
        for i in (1, 2):  # keys, values
            if rounding.cache.is_float:
                yield i, RoundToFloat(rounding.cache)
            else:
                size = node.inputs[i].type.size(-1)
                yield i, RoundToIntegers(rounding.cache.bits, size, symmetric=False)
    group = rounding.activation_group
    if group is None or isinstance(node.op, Gather):  # a table that is looked up meets nothing
        return
    columns = {t.type.size(-1) for t in node.inputs if isinstance(t.node.op, Dequantize)}
    for i, tensor in enumerate(node.inputs):
        stored = isinstance(tensor.node.op, Dequantize)
        if not stored and tensor.dtype.is_float and tensor.type.shape[-1] in columns:
            yield i, RoundToIntegers(8, group, symmetric=True)
