"""Rows of zeros beside those of a step with few tokens, for products that are slow with so few.

OpenVINO's kernel for bf16 weights on processors without AMX asks for weights ahead of their use
once for each row that it multiplies, up to four: with one row it waits for more of them. Rows of
zeros make good for that, and what they cost to compute is hidden behind reading. Measured in
docs/decisions/0082-rows-of-zeros.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openvino import Shape, Type, op
from openvino import opset16 as opset

from paddock.graph import DType, Graph, Node, Tensor
from paddock.graph import ops as F
from paddock.graph.tensor import Dim

ROWS = 4

# What computes each row by itself, and costs next to nothing beside a product.
_BY_ROW = (F.Activation, F.Add, F.Cast, F.Clamp, F.LayerNorm, F.Mul, F.RMSNorm, F.Scale, F.Split)


@dataclass
class FewRows:
    """The values of a graph's tensors while it is lowered, with rows of zeros and without.

    From one product to the next a tensor keeps its rows of zeros, so that a layer adds them once
    and drops them once. Attention, which would count them as tokens, and everything else that does
    not go by rows reads tensors without them.
    """

    products: set[Node] = field(default_factory=set)  # those that are given rows of zeros
    counted: dict[Dim, Tensor] = field(default_factory=dict)  # an input with so many rows
    values: dict[Tensor, Any] = field(default_factory=dict)
    wide: dict[Tensor, Any] = field(default_factory=dict)  # with at least `ROWS` rows
    _counts: dict[Dim, Any] = field(default_factory=dict)
    _zeros: dict[tuple[Dim, int], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> FewRows:
        """For the products of a graph with bf16 weights."""
        inputs = [t for node in graph.find(F.Input) for t in node.outputs]
        counted = {rows: t for t in inputs if (rows := _rows(t)) is not None}
        readers: dict[Tensor, list[Node]] = {}
        for node in graph.nodes:
            for tensor in node.inputs:
                readers.setdefault(tensor, []).append(node)
        products = {
            node
            for node in graph.find(F.Linear)
            if _reads_bf16(node)
            and _rows(node.inputs[0]) in counted
            and not _ends(node, readers, set(graph.outputs))
        }
        return cls(products, counted)

    def takes(self, node: Node) -> bool:
        """Whether the node is computed with rows of zeros."""
        if isinstance(node.op, F.Linear):
            return node in self.products
        return (
            isinstance(node.op, _BY_ROW)
            and any(t in self.wide for t in node.inputs)
            and all(t.type.rank == 2 or _rows(t) is None for t in node.inputs)
        )

    def value(self, tensor: Tensor) -> Any:
        """Without rows of zeros."""
        if tensor not in self.values:
            rows = _rows(tensor)
            assert rows is not None
            first, end, step = _i64(0), self._count(rows), _i64(1)
            self.values[tensor] = opset.slice(self.wide[tensor], first, end, step, _i64(0))
        return self.values[tensor]

    def wide_value(self, tensor: Tensor) -> Any:
        """With rows of zeros behind; as it is where it has no rows (a weight, a bias)."""
        rows = _rows(tensor)
        if rows is None:
            return self.values[tensor]
        if tensor not in self.wide:
            zeros = self._rows_of_zeros(rows, tensor.type.size(1))
            self.wide[tensor] = opset.concat([self.values[tensor], zeros], 0)
        return self.wide[tensor]

    def _count(self, rows: Dim) -> Any:
        """i64 [1]. Of an input: a tensor that is asked for its shape is not computed in bf16."""
        if rows not in self._counts:
            shape = opset.shape_of(self.values[self.counted[rows]], "i64")
            self._counts[rows] = opset.gather(shape, _i64(0), _scalar(0))
        return self._counts[rows]

    def _rows_of_zeros(self, rows: Dim, columns: int) -> Any:
        if (rows, columns) not in self._zeros:
            missing = opset.maximum(opset.subtract(_i64(ROWS), self._count(rows)), _i64(0))
            shape = opset.concat([missing, _i64(columns)], 0)
            zero = op.Constant(Type.f32, Shape([]), [0.0])
            self._zeros[rows, columns] = opset.broadcast(zero, shape)
        return self._zeros[rows, columns]


def _ends(node: Node, readers: dict[Tensor, list[Node]], outputs: set[Tensor]) -> bool:
    """Whether nothing reads by rows what the node makes, as with queries.

    Of those it is cheaper to cut what they are made of, which several share.
    """
    return not any(
        tensor in outputs
        or any(
            not _ends(reader, readers, outputs)
            if _prepares(reader)
            else isinstance(reader.op, (*_BY_ROW, F.Linear))
            for reader in readers.get(tensor, [])
        )
        for tensor in node.outputs
    )


def _prepares(node: Node) -> bool:
    """Adds a bias, scales, divides: what may lie between a product and its heads."""
    if isinstance(node.op, F.Add):
        return any(isinstance(t.node.op, F.Weight) for t in node.inputs)
    return isinstance(node.op, F.Split | F.Scale | F.Clamp)


def _reads_bf16(product: Node) -> bool:
    x, weight = product.inputs
    return x.type.rank == 2 and isinstance(weight.node.op, F.Weight) and weight.dtype is DType.BF16


def _rows(tensor: Tensor) -> Dim | None:
    """The first dimension where only a step tells it."""
    first = tensor.shape[0] if tensor.shape else None
    return first if isinstance(first, Dim) else None


def _i64(*values: int) -> Any:
    return op.Constant(Type.i64, Shape([len(values)]), list(values))


def _scalar(value: int) -> Any:
    return op.Constant(Type.i64, Shape([]), [value])
