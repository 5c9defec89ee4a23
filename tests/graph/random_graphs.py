"""Random sound graphs with something to feed them, for what must hold of every graph."""

from __future__ import annotations

from typing import Any

import numpy as np

import paddock.graph.ops as F
from paddock.engines.reference.evaluate import evaluate
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph.ops import Source
from paddock.graph.tensor import BLOCK_SIZE, BLOCKS, ROWS, SEQUENCES, STARTS, TABLE, TOKENS

_TOKENS, _BLOCK_SIZE = 5, 4
STEP = (
    ("sequence_starts", STARTS, [0, 3, 5]),
    ("past_lengths", SEQUENCES, [0, 2]),
    ("block_table", TABLE, [2, 0]),
    ("block_starts", STARTS, [0, 1, 2]),
)


class RandomGraph:
    """`size` ops chosen by `seed`; `feeds` has a value for every source."""

    def __init__(self, seed: int, size: int) -> None:
        self._random = np.random.default_rng(seed)
        self.feeds: dict[tuple[str, ...], Array] = {}
        self._parts: dict[str, tuple[tuple[str, int], ...]] = {}
        self.graph = Graph(DType.F64)
        with use_graph(self.graph):
            self._rows = self._fed(F.Input("rows", DType.I64, (ROWS,)), np.array([4, 0, 4]))
            positions = np.array([0, 1, 2, 2, 3])
            self._positions = self._fed(F.Input("positions", DType.I64, (TOKENS,)), positions)
            self._step = [
                self._fed(F.Input(key, DType.I32, (dim,)), np.array(value, np.int32))
                for key, dim, value in STEP
            ]
            self._made = [
                self._fed(
                    F.Input("x", DType.F64, (TOKENS, 8)),
                    self._random.standard_normal((_TOKENS, 8)),
                )
            ]
            makers = [
                *(self._cast, self._reshape_twice, self._scale, self._add, self._mul),
                *(self._activation, self._linear, self._fused, self._rms, self._layer_norm),
                *(self._concat, self._gather, self._rotary, self._attention, self._again),
            ]
            for _ in range(size):
                with self.graph.scope(f"layer{len(self._made)}"):
                    self._made += makers[self._random.integers(len(makers))](self._any())
        self.graph.outputs = tuple(self._any() for _ in range(self._random.integers(1, 4)))

    def values(self, graph: Graph) -> tuple[Array, ...]:
        """The outputs of `graph`, which reads the same sources; caches begin as they were."""
        feeds: dict[Source, Array] = {}
        for node in graph.nodes:
            if isinstance(node.op, Source):
                feeds[node.op] = self._feed(node.op)
        return evaluate(graph, feeds)

    def _feed(self, op: Source) -> Array:
        if isinstance(op, F.Weight) and op.part:
            whole = self.feeds["weight", op.key, ""]
            start = 0
            for part, rows in self._parts[op.key]:
                if part == op.part:
                    return whole[start : start + rows].copy()
                start += rows
        return self.feeds[op.feed].copy()

    def _any(self) -> Tensor:
        return self._made[int(self._random.integers(len(self._made)))]

    def _width(self, x: Tensor) -> int:
        return x.type.size(1)

    def _fed(self, op: Source, value: Array) -> Tensor:
        self.feeds[op.feed] = value
        tensor: Tensor = op()
        return tensor

    def _weight(self, *shape: int, parts: tuple[tuple[str, int], ...] = ()) -> Tensor:
        key = f"w{len(self.feeds)}"
        if len(shape) == 2 and self._random.random() < 0.3:
            integers = F.Weight(key, DType.I8, shape, parts)
            scales = F.Weight(F.scale_name(key), DType.F16, (shape[0], 1), parts)
            self._parts[integers.key] = self._parts[scales.key] = parts
            low = self._random.integers(-127, 128, shape).astype(np.int8)
            tensor: Tensor = F.Dequantize(DType.F64)(
                self._fed(integers, low),
                self._fed(scales, self._random.random((shape[0], 1)).astype(np.float16) / 100),
            )
            return tensor
        self._parts[key] = parts
        op = F.Weight(key, DType.F64, shape, parts)
        return self._fed(op, self._random.standard_normal(shape) / np.sqrt(shape[-1]))

    def _cast(self, x: Tensor) -> list[Tensor]:
        return [F.Cast(DType.F64)(x)]

    def _reshape_twice(self, x: Tensor) -> list[Tensor]:
        width = self._width(x)
        return [F.Reshape((width,))(F.Reshape((1, width))(F.Reshape((width, 1))(x)))]

    def _scale(self, x: Tensor) -> list[Tensor]:
        return [F.scale(x, float(self._random.choice([1.0, 0.5, -1.5])))]

    def _binary(self, x: Tensor, op: Any) -> list[Tensor]:
        others = [y for y in self._made if y.type == x.type]
        return [op(x, others[int(self._random.integers(len(others)))])]

    def _add(self, x: Tensor) -> list[Tensor]:
        return self._binary(x, F.add)

    def _mul(self, x: Tensor) -> list[Tensor]:
        # Bounded, so that a chain of products stays a number.
        return self._binary(F.activation(x, "tanh"), F.mul)

    def _activation(self, x: Tensor) -> list[Tensor]:
        return [F.activation(x, str(self._random.choice(list(F.ACTIVATIONS))))]

    def _linear(self, x: Tensor) -> list[Tensor]:
        return [F.linear(x, self._weight(8, self._width(x)))]

    def _fused(self, x: Tensor) -> list[Tensor]:
        some = [(4, 8, 2), (4, 4), (8, 8, 8)]
        sizes = some[int(self._random.integers(len(some)))]
        parts = tuple(zip("abc", sizes, strict=False))
        y = F.linear(x, self._weight(sum(sizes), self._width(x), parts=parts))
        if self._random.random() < 0.5:
            y = y + self._weight(sum(sizes), parts=parts)
        # Sizes other than the parts' are cut from the product as it is.
        if self._random.random() < 0.2:
            sizes = (sizes[0] - 2, sizes[1] + 2, *sizes[2:])
        return list(F.split(y, *sizes))

    def _rms(self, x: Tensor) -> list[Tensor]:
        return [F.rms_norm(x, self._weight(self._width(x)), 0.01)]

    def _layer_norm(self, x: Tensor) -> list[Tensor]:
        bias = self._weight(self._width(x)) if self._random.random() < 0.5 else None
        return [F.layer_norm(x, self._weight(self._width(x)), bias, 0.01)]

    def _concat(self, x: Tensor) -> list[Tensor]:
        others = [y for y in self._made if y.shape[0] == x.shape[0] and self._width(y) <= 16]
        return [F.concat(x, *others[:1])] if self._width(x) <= 16 else []

    def _gather(self, x: Tensor) -> list[Tensor]:
        return [F.gather(x, self._rows)] if x.shape[0] == TOKENS else []

    def _rotary(self, x: Tensor) -> list[Tensor]:
        if x.shape[0] != TOKENS or self._width(x) % 4:
            return []
        cos, sin = F.rotary_angles(self._positions, (1.0, 0.5))
        heads = F.reshape(x, self._width(x) // 4, 4)
        return [F.reshape(F.rotary(heads, cos, sin), self._width(x))]

    def _attention(self, x: Tensor) -> list[Tensor]:
        if x.shape[0] != TOKENS or self._width(x) % 4:
            return []
        heads = self._width(x) // 4
        shape = (BLOCKS, BLOCK_SIZE, heads, 4)
        caches = [
            self._fed(
                F.CacheBlocks(f"c{len(self.feeds)}", DType.F64, shape),
                self._random.standard_normal((3, _BLOCK_SIZE, heads, 4)),
            )
            for _ in range(2)
        ]
        y = F.reshape(x, heads, 4)
        z = F.Attention(0.5)(y, y, y, *caches, *self._step)
        return [F.reshape(z, self._width(x))]

    def _again(self, x: Tensor) -> list[Tensor]:
        """The op that made x once more, on the same operands."""
        node = x.node
        if isinstance(node.op, F.Attention | Source):
            return []
        made = node.op(*node.inputs)
        return [made[x.index] if isinstance(made, tuple) else made]
