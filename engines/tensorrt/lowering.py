"""One function an op: from the graph to TensorRT's layers.

Token-wise values keep the graph's axes, [tokens, features], tokens being the rows of a padded step
[S, L] one behind the other; attention alone sees S and L. What the compiler has a kernel for is
given to it as one layer (attention, cache update, rotary embedding, dequantization); the rest in
primitives of the form that it fuses. Norms and angles are computed in f32 whatever the type. Why
each form is as it is: docs/decisions/0020-tensorrt-forms.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.attention import IMAGE, SOURCE, STEP, attention
from paddock.engines.tensorrt.bounds import (
    FLAT,
    IMAGES,
    PATCHES,
    ROWS,
    SEQUENCES,
    SOURCES,
    TOKENS,
    Bounds,
)
from paddock.engines.tensorrt.collectives import (
    all_gather,
    all_reduce,
    broadcast,
    reduce_scatter,
)
from paddock.engines.tensorrt.cross_attention import cross_attention
from paddock.engines.tensorrt.encoders import bidirectional_attention, sequence_mean
from paddock.engines.tensorrt.experts import grouped_linear, route, weighted_sum
from paddock.engines.tensorrt.network import CheckedNetwork, Tensor
from paddock.engines.tensorrt.plugin import is_plugin, plugin
from paddock.engines.tensorrt.states import (
    causal_conv,
    gated_delta_rule,
    real_gated_recurrence,
    selective_scan,
    state_slots,
)
from paddock.graph import DType, Graph, Node
from paddock.graph import Tensor as GraphTensor
from paddock.graph import ops as F
from paddock.graph.op import Op
from paddock.graph.ops import Weight
from paddock.graph.tensor import fixed


@dataclass(frozen=True)
class NetworkInput:
    """What is fed under a name; `dims` are numbers, or names of dimensions of the profiles."""

    name: str
    kind: str
    """step, weight, cache, state, or received (from the pipeline stage before)."""
    dtype: DType
    dims: tuple[int | str, ...]


class NetworkWeights(Protocol):
    """How weights come into a network: as inputs, or as constants over bound weights."""

    def tensor(self, state: Lowering, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        """The weight viewed as `shape`."""


@dataclass
class Lowering:
    """A graph on its way: what its nodes share."""

    network: CheckedNetwork
    graph: Graph
    bounds: Bounds
    weights: NetworkWeights
    ranks: int = 1
    """Tensor-parallel ranks, which collectives are among."""
    inputs: dict[str, NetworkInput] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    fed: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[object, Any] = field(default_factory=dict)
    """Tensors that several nodes read, e.g. the mask of a window."""
    readers: dict[GraphTensor, list[Op]] = field(default_factory=dict)

    def feed(self, name: str, kind: str, dtype: DType, *dims: int | str) -> Tensor:
        """The network input of this name, made when it is first asked for."""
        if name not in self.fed:
            shape = [d if isinstance(d, int) else -1 for d in dims]
            tensor = self.network.input(name, dtype, shape)
            for axis, dim in enumerate(dims):
                if isinstance(dim, str):
                    tensor.set_dimension_name(axis, dim)
            self.inputs[name] = NetworkInput(name, kind, dtype, dims)
            self.fed[name] = tensor
        return self.fed[name]

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def positions(self) -> Tensor:
        """i64 [S, L], whose shape says what S and L are."""
        return self.feed("positions", "step", DType.I64, SEQUENCES, TOKENS)

    def step_shape(self, of: str = STEP) -> Tensor:
        """i64 [2]: S and L; S and E, of the sources that a call brings; images and patches."""
        names = {
            STEP: ("positions",),
            SOURCE: ("source_ids", "source_features"),
            IMAGE: ("image_patches",),
        }[of]

        def make() -> Tensor:
            rows = (
                self.positions()
                if of == STEP
                else next(self.fed[n] for n in names if n in self.fed)
            )
            shape = self.network.add("shape", rows)
            return shape if len(rows.shape) == 2 else self.last_axis(shape, 0, 2)

        return self.once(("shape", of), make)

    def give(self, tensor: Tensor, name: str) -> None:
        """Mark a network output."""
        self.network.mark_output(tensor, name)
        self.outputs.append(name)

    def widened(self, x: Tensor) -> Tensor:
        """As f32."""
        wide = self.network.dtype(DType.F32)
        return x if x.dtype == wide else self.network.add("cast", x, wide)

    def narrowed(self, x: Tensor, dtype: DType) -> Tensor:
        """As `dtype`."""
        kind = self.network.dtype(dtype)
        return x if x.dtype == kind else self.network.add("cast", x, kind)

    def elementwise(self, operation: str, x: Tensor, y: Tensor) -> Tensor:
        kind = self.network.enum("ElementWiseOperation", operation)
        return self.network.add("elementwise", x, y, kind)

    def unary(self, operation: str, x: Tensor) -> Tensor:
        return self.network.add("unary", x, self.network.enum("UnaryOperation", operation))

    def mean(self, x: Tensor) -> Tensor:
        """Over the last axis, which stays with size 1."""
        last = 1 << (len(x.shape) - 1)
        average = self.network.enum("ReduceOperation", "AVG")
        return self.network.add("reduce", x, average, last, True)

    def view(
        self,
        x: Tensor,
        shape: tuple[int, ...] | None = None,
        *,
        sizes: Tensor | None = None,
        before: tuple[int, ...] | None = None,
        after: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Axes permuted as `before` says, seen as `shape` or the tensor `sizes`, permuted again.

        In `shape`, 0 is the operand's own size of that axis, -1 what is left.
        """
        network = self.network
        layer = network.layer("shuffle", x)
        if before is not None:
            network.set(layer, "first_transpose", network.flavour.module.Permutation(before))
        if shape is not None:
            network.set(layer, "reshape_dims", shape)
        if sizes is not None:
            network.set_input(layer, 1, sizes)
        if after is not None:
            network.set(layer, "second_transpose", network.flavour.module.Permutation(after))
        return network.output(layer)

    def with_rank(self, x: Tensor, rank: int) -> Tensor:
        """Axes of size 1 put before those that there are, all of them fixed."""
        shape = tuple(x.shape)
        return x if len(shape) == rank else self.view(x, (1,) * (rank - len(shape)) + shape)

    def last_axis(self, x: Tensor, start: int, size: int) -> Tensor:
        """A piece of the last axis."""
        layer = self.network.layer("slice", x, (start,), (size,), (1,))
        self.network.set(layer, "axes", (len(x.shape) - 1,))
        return self.network.output(layer)

    def joined(self, parts: list[Tensor], axis: int) -> Tensor:
        layer = self.network.layer("concatenation", parts)
        self.network.set(layer, "axis", axis)
        return self.network.output(layer)


def lower(state: Lowering) -> None:
    """The whole graph. Raises `BuildError` under the module path of what cannot be lowered."""
    graph, network = state.graph, state.network
    for node in graph.nodes:
        for tensor in node.inputs:
            state.readers.setdefault(tensor, []).append(node.op)
    values: dict[GraphTensor, Any] = {}
    for node in graph.nodes:
        inputs = [values[t] for t in node.inputs]
        with network.at(node, _weights_of(node)):
            made = _lower_node(state, node, inputs)
        outputs = made if isinstance(made, list | tuple) else [made]
        for tensor, value in zip(node.outputs, outputs, strict=True):
            values[tensor] = value
    for tensor in graph.outputs:
        is_sent = isinstance(tensor.node.op, F.Send)
        with network.at(tensor.node):
            state.give(values[tensor], "sent" if is_sent else "logits")


def lowers(kind: Op) -> bool:
    """Whether the table below has the op, and a padded step the array."""
    return type(kind) in TABLE and (not isinstance(kind, F.Input) or kind.key in _STEP)


def _weights_of(node: Node) -> list[str]:
    """The slots that a node reads."""
    return [op.key for t in node.inputs if isinstance(op := t.node.op, Weight)]


def _lower_node(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    own = TABLE.get(type(node.op))
    if own is not None:
        return own(state, node, inputs)
    given = node.op.lowerings.get("tensorrt")
    if given is not None:
        return given(node.op, state, *inputs)
    if is_plugin(node.op, state.network.flavour):
        return plugin(state, node, inputs)
    raise BuildError(f"{node.where}: the engine tensorrt has no lowering of {node.op.name}")


# ** sources **


def _input(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.Input)
    if op.key == "logit_rows":
        return state.feed(op.key, "step", op.dtype, ROWS)
    if op.key in _BY_TOKEN:
        rows = state.feed(op.key, "step", op.dtype, SEQUENCES, TOKENS)
        return state.once(("flat", op.key), lambda: state.view(rows, (-1,)))
    if op.key in _BY_SOURCE:
        tail = fixed(op.shape[1:])
        rows = state.feed(op.key, "step", op.dtype, SEQUENCES, SOURCES, *tail)
        return state.once(("flat", op.key), lambda: state.view(rows, (-1, *tail)))
    if op.key in _BY_PATCH:
        tail = fixed(op.shape[1:])
        rows = state.feed(op.key, "step", op.dtype, IMAGES, PATCHES, *tail)
        return state.once(("flat", op.key), lambda: state.view(rows, (-1, *tail)))
    if op.key in PACKED_STEP:
        return None  # of a packed step: attention has `write_indices` and lengths in their place
    raise BuildError(f"{node.where}: a padded step has no array {op.key!r}")


_BY_TOKEN = ("token_ids", "positions", "token_types", "image_rows")
_BY_SOURCE = ("source_ids", "source_features", "source_positions")
_BY_PATCH = ("image_patches", "image_positions")
PACKED_STEP = (
    "sequence_starts",
    "past_lengths",
    "block_table",
    "block_starts",
    "sequence_slots",
    "source_starts",
    "source_lengths",
    "source_table",
    "source_table_starts",
    "image_starts",
)
_STEP = ("logit_rows", *_BY_TOKEN, *_BY_SOURCE, *_BY_PATCH, *PACKED_STEP)


def _weight(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, Weight)
    if any(isinstance(reader, F.Dequantize) for reader in state.readers.get(node.outputs[0], [])):
        return None  # made in the shape in which the dequantization wants it
    return state.weights.tensor(state, op, fixed(op.shape))


def _cache(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.CacheBlocks)
    heads, size = fixed(op.shape[2:])
    return state.feed(op.key, "cache", op.dtype, SEQUENCES, heads, state.bounds.capacity, size)


def _fill(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.Fill)
    return state.network.constant(np.full(op.shape, op.value, op.dtype.numpy), op.dtype)


def _dequantize(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    integers, scales = (t.node.op for t in node.inputs)
    if not (isinstance(integers, Weight) and isinstance(scales, Weight)):
        raise BuildError(f"{node.where}: dequantize expects stored integers and scales")
    *leading, groups = fixed(scales.shape)
    per_row, rows = groups == 1, prod(leading)  # of all experts, one behind the other
    network, dtype, shape = state.network, node.outputs[0].dtype, fixed(integers.shape)
    values = state.weights.tensor(state, integers, (rows, shape[-1]))
    scale = state.weights.tensor(state, scales, (rows,) if per_row else (rows, groups))
    if integers.dtype is not DType.F8E4M3:
        # TensorRT has 4-bit integers' scales in the type of the result alone.
        scale = state.narrowed(scale, dtype)
    layer = network.layer("dequantize", values, scale, network.dtype(dtype))
    if per_row:
        network.set(layer, "axis", 0)
    y = network.output(layer)
    return y if len(shape) == 2 else state.view(y, shape)


# ** arithmetic **


def _linear(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    none, transposed = (state.network.enum("MatrixOperation", n) for n in ("NONE", "TRANSPOSE"))
    return state.network.add("matrix_multiply", inputs[0], none, inputs[1], transposed)


def _head_linear(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.HeadLinear)
    x, weight = inputs
    if op.rows != node.inputs[1].type.size(1):
        layer = state.network.layer("slice", weight, (op.first,), (op.rows,), (1,))
        state.network.set(layer, "axes", (1,))
        weight = state.network.output(layer)
    none, transposed = (state.network.enum("MatrixOperation", n) for n in ("NONE", "TRANSPOSE"))
    y = state.network.add(
        "matrix_multiply",
        state.view(x, after=(1, 0, 2)),
        none,
        weight,
        none if op.turned else transposed,
    )
    return state.view(y, after=(1, 0, 2))


def _binary(operation: str) -> Callable[[Lowering, Node, list[Any]], Any]:
    def lowering(state: Lowering, node: Node, inputs: list[Any]) -> Any:
        x, y = inputs
        return state.elementwise(operation, x, state.with_rank(y, len(x.shape)))

    return lowering


def _mul(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    own = _binary("PROD")
    if node.outputs[0].dtype is not DType.F16 or not any(map(_is_biased, node.inputs)):
        return own(state, node, inputs)
    # For Turing, the compiler fuses these into the matrix product before them, of which it then
    # has no kernel. The product of two f16 is exact in f32: the same value comes of it.
    wide = [state.widened(x) for x in inputs]
    return state.narrowed(own(state, node, wide), DType.F16)


def _is_biased(x: GraphTensor) -> bool:
    """Whether it is an activation of a product with a bias, or of a piece of one."""
    if not isinstance(x.node.op, F.Activation):
        return False
    (before,) = x.node.inputs
    if isinstance(before.node.op, F.Split):
        (before,) = before.node.inputs
    return isinstance(before.node.op, F.Add) and isinstance(before.node.inputs[1].node.op, Weight)


def _scale(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op, dtype = node.op, node.outputs[0].dtype
    assert isinstance(op, F.Scale)
    x = state.widened(inputs[0])
    factor = state.network.scalar(op.factor, DType.F32, len(x.shape))
    return state.narrowed(state.elementwise("PROD", x, factor), dtype)


def _clamp(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.Clamp)
    x = state.widened(inputs[0])
    for operation, bound in (("MAX", op.low), ("MIN", op.high)):
        x = state.elementwise(operation, x, state.network.scalar(bound, DType.F32, len(x.shape)))
    return state.narrowed(x, node.outputs[0].dtype)


def _cast(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Cast)
    return state.narrowed(inputs[0], node.op.dtype)


def _activation(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.Activation)
    if op.kind not in ACTIVATIONS:
        raise BuildError(f"{node.where}: the engine tensorrt has no lowering of {op.kind}")
    kind = state.network.enum("ActivationType", ACTIVATIONS[op.kind])
    layer = state.network.layer("activation", inputs[0], kind)
    if op.kind == "softplus":  # alpha * log(exp(beta * x) + 1)
        state.network.set(layer, "alpha", 1.0)
        state.network.set(layer, "beta", 1.0)
    y = state.network.output(layer)
    # x * sigmoid(x) is what becomes one SiLU, and with the product behind it one gated kernel.
    return state.elementwise("PROD", inputs[0], y) if op.kind == "silu" else y


ACTIVATIONS = {
    "silu": "SIGMOID",
    "gelu": "GELU_ERF",
    "gelu_tanh": "GELU_TANH",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softplus": "SOFTPLUS",
    "tanh": "TANH",
}


# ** norms: in f32, in the form that is recognised as a pattern and becomes one kernel **


def _rms_norm(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.RMSNorm)
    x = state.widened(inputs[0])
    square = state.mean(state.elementwise("PROD", x, x))
    y = state.elementwise("DIV", x, _root(state, square, op.eps))
    return _weighted(state, node, y, inputs[1:])


def _layer_norm(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.LayerNorm)
    x = state.widened(inputs[0])
    centred = state.elementwise("SUB", x, state.mean(x))
    variance = state.mean(state.elementwise("PROD", centred, centred))
    y = state.elementwise("DIV", centred, _root(state, variance, op.eps))
    return _weighted(state, node, y, inputs[1:])


def _root(state: Lowering, mean: Tensor, eps: float) -> Tensor:
    """sqrt(mean + eps)."""
    small = state.network.scalar(eps, DType.F32, len(mean.shape))
    return state.unary("SQRT", state.elementwise("SUM", mean, small))


def _weighted(state: Lowering, node: Node, y: Tensor, operands: list[Any]) -> Tensor:
    """y * weight + bias, as far as they are given, in the node's own type."""
    for operation, operand in zip(("PROD", "SUM"), operands, strict=False):
        wide = state.widened(state.with_rank(operand, len(y.shape)))
        y = state.elementwise(operation, y, wide)
    return state.narrowed(y, node.outputs[0].dtype)


# ** positions **


def _rotary_angles(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # For the layer that turns pairs, a table of as many columns as there are; else the graph's own.
    op = node.op
    assert isinstance(op, F.RotaryAngles)
    frequencies = np.asarray(op.frequencies, np.float32)[None]
    positions = state.view(state.widened(inputs[0]), (-1, 1))
    angles = state.elementwise("PROD", positions, state.network.constant(frequencies, DType.F32))
    tables = []
    for kind, tensor in zip(("COS", "SIN"), node.outputs, strict=True):
        table = state.unary(kind, angles)
        if op.factor != 1.0:
            factor = state.network.scalar(op.factor, DType.F32, 2)
            table = state.elementwise("PROD", table, factor)
        turning = {isinstance(reader, F.Rotary) for reader in state.readers.get(tensor, [])}
        if len(turning) > 1:
            raise BuildError(
                f"{node.where}: tables of angles are read by rotary and by other ops; on tensorrt"
                " make two of them"
            )
        if False in turning:
            table = state.joined([table, table], 1)
        tables.append(table)
    return tables


def _rotary(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # In f32, as the tables are: the layer wants one type, and a bf16 cosine has three digits.
    op, network = node.op, state.network
    assert isinstance(op, F.Rotary)
    kind = node.inputs[0].type
    heads, size, rotated = kind.size(1), kind.size(2), node.inputs[1].type.size(1)
    x = state.view(state.widened(inputs[0]), (1, -1, heads, size), after=(0, 2, 1, 3))
    cos, sin = (_table(state, table, rotated // 2) for table in inputs[1:])
    layer = network.layer("rotary_embedding", x, cos, sin, op.interleaved, rotated % size)
    y = state.view(network.output(layer), (-1, heads, size), before=(0, 2, 1, 3))
    return state.narrowed(y, kind.dtype)


def _table(state: Lowering, table: Tensor, pairs: int) -> Tensor:
    """[tokens, pairs] -> [1, tokens, pairs], one layer however many layers read it."""
    return state.once(("table", id(table)), lambda: state.view(table, (1, -1, pairs)))


# ** moving elements about **


def _split(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Split)
    pieces, start = [], 0
    for size in node.op.sizes:
        pieces.append(state.last_axis(inputs[0], start, size))
        start += size
    return pieces


def _concat(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return state.joined(inputs, node.outputs[0].type.rank - 1)


def _reshape(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Reshape)
    return state.view(inputs[0], (0, *node.op.tail))


def _gather(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return state.network.add("gather", inputs[0], inputs[1], 0)


def _fold_rows(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return state.view(inputs[0], (-1, node.outputs[0].type.size(1)))


def _replace_rows(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # A call has one row at least to be read, which is nobody's where there is no image.
    x, y, rows = inputs
    network, rank = state.network, node.inputs[0].type.rank
    none = network.scalar(0, node.inputs[2].dtype, 1)
    found = network.add("gather", y, state.elementwise("MAX", rows, none), 0)
    itself = state.view(state.elementwise("LESS", rows, none), (-1, *(1,) * (rank - 1)))
    return network.add("select", itself, x, found)


# ** other ranks **


def _receive(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    op = node.op
    assert isinstance(op, F.Receive)
    return state.feed("received", "received", op.dtype, FLAT, *fixed(op.tail))


def _send(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return state.network.add("identity", inputs[0])  # the output, which the runtime sends on


TABLE: dict[type[Op], Callable[[Lowering, Node, list[Any]], Any]] = {
    F.Activation: _activation,
    F.Add: _binary("SUM"),
    F.AllGather: all_gather,
    F.AllReduce: all_reduce,
    F.Attention: attention,
    F.BidirectionalAttention: bidirectional_attention,
    F.Broadcast: broadcast,
    F.CacheBlocks: _cache,
    F.Cast: _cast,
    F.CausalConv: causal_conv,
    F.Clamp: _clamp,
    F.Concat: _concat,
    F.CrossAttention: cross_attention,
    F.Dequantize: _dequantize,
    F.Fill: _fill,
    F.FoldRows: _fold_rows,
    F.Gather: _gather,
    F.Input: _input,
    F.GatedDeltaRule: gated_delta_rule,
    F.GroupedLinear: grouped_linear,
    F.HeadLinear: _head_linear,
    F.ImageAttention: attention,
    F.LayerNorm: _layer_norm,
    F.Linear: _linear,
    F.Mul: _mul,
    F.RMSNorm: _rms_norm,
    F.RealGatedRecurrence: real_gated_recurrence,
    F.Receive: _receive,
    F.ReduceScatter: reduce_scatter,
    F.RelativeAttention: attention,
    F.ReplaceRows: _replace_rows,
    F.Reshape: _reshape,
    F.Rotary: _rotary,
    F.Route: route,
    F.RotaryAngles: _rotary_angles,
    F.Scale: _scale,
    F.Send: _send,
    F.SelectiveScan: selective_scan,
    F.SequenceMean: sequence_mean,
    F.SinkAttention: attention,
    F.Split: _split,
    F.StateSlots: state_slots,
    F.Weight: _weight,
    F.WeightedSum: weighted_sum,
}
