"""One function an op: from the graph to OpenVINO, in the forms for which it has fast kernels.

Every float is f32 in OpenVINO's graph; the precision of arithmetic is a property to compile with
(`settings.py`), and the compiler places the conversions. Activations keep their two axes,
[tokens, features]. Why each form is as it is: docs/decisions/0010-openvino-forms.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
from openvino import PartialShape, Shape, Type, op
from openvino import opset16 as opset

from paddock.engines.openvino import recurrent, sequences
from paddock.engines.openvino.experts import Order, grouped_linear, ordered, route
from paddock.engines.openvino.few_rows import FewRows
from paddock.engines.openvino.paged_attention import Heads, paged_attention, takes
from paddock.engines.openvino.portable_attention import PortableAttention
from paddock.engines.openvino.weights import OV_TYPES, Weights
from paddock.engines.protocol import BuildError
from paddock.graph import DType, Graph, Node, Tensor
from paddock.graph import ops as F
from paddock.graph.op import Op
from paddock.graph.tensor import fixed

INT32_MAX = 2**31 - 1
BLOCK_SIZE = 32  # fixed by the CPU plugin's paged attention


@dataclass
class Lowering:
    """A graph on its way: what its nodes share."""

    weights: Weights
    stored: set[Tensor]  # integers and scales, which the dequantize over them reads
    portable: PortableAttention  # for attention that OpenVINO's own kernel does not take
    portable_caches: set[Tensor]
    parameters: dict[str, Any] = field(default_factory=dict)
    tables: dict[Tensor, Any] = field(default_factory=dict)
    paddings: dict[Tensor, sequences.Padding] = field(default_factory=dict)
    orders: dict[Tensor, Order] = field(default_factory=dict)
    rows: dict[tuple[Tensor, ...], recurrent.Rows] = field(default_factory=dict)

    def parameter(self, key: str, kind: Type, shape: list[int]) -> Any:
        if key not in self.parameters:
            node = op.Parameter(kind, PartialShape(shape))
            node.set_friendly_name(key)
            node.output(0).get_tensor().set_names({key})
            self.parameters[key] = node
        return self.parameters[key]

    def table(self, tensor: Tensor, value: Any) -> Any:
        """[tokens, size] -> [tokens, 1, 1, size], one node however many layers read it."""
        if tensor not in self.tables:
            self.tables[tensor] = opset.unsqueeze(value, _i64(1, 2))
        return self.tables[tensor]

    def padding(self, starts: Tensor, value: Any, tokens: Any) -> sequences.Padding:
        """Of the sequences that begin at `starts`, once however many layers read it."""
        if starts not in self.paddings:
            self.paddings[starts] = sequences.Padding.of(value, tokens)
        return self.paddings[starts]


def lower(
    graph: Graph, weights: Weights, cache_dtype: str = "f32", *, zeros: bool = False
) -> ov.Model:
    """The whole graph. Raises `BuildError` under the module path of what cannot be lowered.

    `cache_dtype` is that of caches which Paddock itself writes (see `portable_attention.py`).
    `zeros`: products of few rows get rows of zeros (see `few_rows.py`).
    """
    stored = {t for n in graph.find(F.Dequantize) for t in n.inputs}
    portable = PortableAttention(BLOCK_SIZE, cache_dtype)
    state = Lowering(weights, stored, portable, portable_caches(graph))
    few = FewRows.of(graph) if zeros else FewRows()
    for node in graph.nodes:
        wide = few.takes(node)
        inputs = [few.wide_value(t) if wide else few.value(t) for t in node.inputs]
        try:
            made = _lower_node(state, node, inputs)
        except (RuntimeError, TypeError) as error:  # what OpenVINO raises
            raise BuildError(f"{node.where}: {node.op.name}: {error}") from error
        outputs = made if isinstance(made, list | tuple) else [made]
        (few.wide if wide else few.values).update(zip(node.outputs, outputs, strict=True))
    results = []
    for i, tensor in enumerate(graph.outputs):
        output = _output(few.value(tensor))
        if output.get_node().get_type_name() == "Parameter":
            # A tensor has one set of names: the input's would be lost.
            output = _output(opset.multiply(output, _f32(1.0)))
        result = op.Result(output)
        result.output(0).get_tensor().set_names({f"output_{i}"})
        results.append(result)
    new = {new_rows(key): value for key, value in portable.written.items()}
    new |= {new_source_rows(key): value for key, value in portable.written_sources.items()}
    for name, value in new.items():
        result = op.Result(_output(value))
        result.output(0).get_tensor().set_names({name})
        results.append(result)
    parameters = [*state.parameters.values(), *portable.parameters.values()]
    return ov.Model(results, parameters, "paddock")


def portable_caches(graph: Graph) -> set[Tensor]:
    """The caches whose attention OpenVINO's own kernel does not take."""
    return {
        cache
        for node in graph.nodes
        if isinstance(node.op, F.CrossAttention)
        or (isinstance(node.op, F.Attention) and not takes(node.op))
        for cache in node.inputs[3:5]
    }


def new_rows(key: str) -> str:
    """The name of the output with what a step adds to a cache slot that Paddock writes."""
    return f"new {key}"


def new_source_rows(key: str) -> str:
    """The same with what a step's sources add."""
    return f"new source {key}"


def lowers(kind: Op) -> bool:
    """Whether the table below has the op."""
    return type(kind) in TABLE


def _lower_node(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    own = TABLE.get(type(node.op))
    if own is not None:
        return own(state, node, inputs)
    given = node.op.lowerings.get("openvino")
    if given is None:
        raise BuildError(
            f"{node.where}: the engine openvino has no lowering of the op {node.op.name}; build the"
            " engine again"
        )
    return given(node.op, *inputs)


def _input(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    source = node.op
    assert isinstance(source, F.Input)
    shape = [d if isinstance(d, int) else -1 for d in source.shape]
    kind = DType.F32 if source.dtype.is_float else source.dtype
    return state.parameter(source.key, OV_TYPES[kind], shape)


def _cache(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # The compiler chooses type and layout, and tells them by the compiled model's inputs.
    source = node.op
    assert isinstance(source, F.CacheBlocks)
    if node.outputs[0] in state.portable_caches:
        return state.portable.cache(source)
    return state.parameter(source.key, Type.dynamic, [-1] * 4)


def _state(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return None  # the op that reads it knows in which layout


def _slots(state: Lowering, tensor: Tensor, *shape: int) -> Any:
    """The slots of a state as its op wants each: its own shape, or the same numbers otherwise."""
    source = tensor.node.op
    assert isinstance(source, F.StateSlots)
    return state.parameter(source.key, Type.f32, [-1, *(shape or fixed(source.shape[1:]))])


def _rows(state: Lowering, tensors: tuple[Tensor, ...], step: list[Any]) -> recurrent.Rows:
    key = tuple(tensors)
    if key not in state.rows:
        state.rows[key] = recurrent.rows(*step)
    return state.rows[key]


def _causal_conv(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    x, weight, _, *step = inputs[:6]
    slots = _slots(state, node.inputs[2])
    bias = inputs[6] if len(inputs) > 6 else None
    return recurrent.causal_conv(x, weight, bias, slots, _rows(state, node.inputs[3:6], step))


def _selective_scan(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    x, dt, a, b, c, d, _, *step = inputs
    rows = _rows(state, node.inputs[7:10], step)
    heads, size = node.inputs[0].type.size(1), node.inputs[0].type.size(2)
    groups, n = node.inputs[3].type.size(1), node.inputs[3].type.size(2)
    skipped = opset.multiply(x, opset.unsqueeze(d, _i64(1)))
    if node.inputs[2].type.rank == 1:
        slots = _slots(state, node.inputs[6])
        return opset.add(recurrent.selective_scan(x, dt, a, b, c, slots, rows), skipped)
    # The kernel knows one rate a head. Each number of a head's state becomes a head of its own,
    # number by number, so that the heads of one B and C are neighbours; their results are summed.
    if size != 1 or groups != 1:
        raise BuildError(
            f"{node.where}: openvino computes rates for each number of a state where heads are of"
            f" size 1 and of one group, not {size} and {groups}"
        )
    slots = _slots(state, node.inputs[6], n * heads, 1, 1)
    made = recurrent.selective_scan(
        opset.tile(x, _i64(1, n, 1)),
        opset.tile(dt, _i64(1, n)),
        opset.reshape(opset.transpose(a, _i64(1, 0)), _i64(-1), False),
        opset.reshape(b, _i64(0, n, 1), True),
        opset.reshape(c, _i64(0, n, 1), True),
        slots,
        rows,
    )
    summed = opset.reduce_sum(opset.reshape(made, _i64(0, n, heads), True), _i64(1), False)
    return opset.add(opset.unsqueeze(summed, _i64(2)), skipped)


def _real_gated_recurrence(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    x, gate, rates, _, *step = inputs
    slots = _slots(state, node.inputs[3])
    rows = _rows(state, node.inputs[4:7], step)
    return recurrent.real_gated_recurrence(x, gate, rates, slots, rows)


def _gated_delta_rule(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    q, k, v, gate, beta, _, *step = inputs
    slots = _slots(state, node.inputs[5])
    rows = _rows(state, node.inputs[6:9], step)
    return recurrent.gated_delta_rule(q, k, v, gate, beta, slots, rows)


def _weight(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    weight = node.op
    assert isinstance(weight, F.Weight)
    return None if node.outputs[0] in state.stored else state.weights.widened(weight)


def _dequantize(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    integers, scales = (t.node.op for t in node.inputs)
    if not (isinstance(integers, F.Weight) and isinstance(scales, F.Weight)):
        raise BuildError(f"{node.where}: dequantize expects stored integers and scales")
    *rows, columns = fixed(node.outputs[0].shape)
    groups = node.inputs[1].type.size(-1)
    per_row = groups == 1
    shape = (*rows, columns) if per_row else (*rows, groups, columns // groups)
    scale_shape = (*rows, 1) if per_row else (*rows, groups, 1)
    kind = str(scales.dtype)
    values = opset.convert(state.weights.constant(integers, shape), kind)
    weight = opset.multiply(values, state.weights.constant(scales, scale_shape))
    if not per_row:
        weight = opset.reshape(weight, _i64(*rows, columns), False)
    return weight if scales.dtype is DType.F32 else opset.convert(weight, "f32")


def _linear(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return opset.matmul(inputs[0], inputs[1], False, True)


def _head_linear(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    product = node.op
    assert isinstance(product, F.HeadLinear)
    first, last = _i64(product.first), _i64(product.first + product.rows)
    weight = opset.slice(inputs[1], first, last, _i64(1), _i64(1))
    by_head = opset.transpose(inputs[0], _i64(1, 0, 2))
    made = opset.matmul(by_head, weight, False, not product.turned)
    return opset.transpose(made, _i64(1, 0, 2))


def _gather(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return opset.gather(inputs[0], inputs[1], _scalar(0))


def _fold_rows(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.FoldRows)
    # The number of rows is computed: it may be 0, of which -1 cannot be inferred.
    rows = opset.gather(opset.shape_of(inputs[0], "i64"), _i64(0), _scalar(0))
    count = opset.divide(rows, _i64(node.op.count))
    shape = opset.concat([count, _i64(node.outputs[0].type.size(1))], 0)
    return opset.reshape(inputs[0], shape, False)


def _replace_rows(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    x, y, rows = inputs
    # A row of zeros in front, so that there always is one to read.
    behind = opset.pad(y, _i64(1, 0), _i64(0, 0), "constant")
    found = opset.gather(behind, opset.maximum(opset.add(rows, _scalar(1)), _scalar(0)), _scalar(0))
    there = opset.unsqueeze(opset.greater_equal(rows, _scalar(0)), _i64(1))
    return opset.select(there, found, x)


def _rms_norm(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # weight * (x * (1 / sqrt(mean(x^2) + eps))) is the form that becomes one RMS node.
    norm = node.op
    assert isinstance(norm, F.RMSNorm)
    x, weight = inputs
    mean = opset.reduce_mean(opset.power(x, _f32(2.0)), _i64(-1), True)
    inverse = opset.divide(_f32(1.0), opset.sqrt(opset.add(mean, _f32(norm.eps))))
    return opset.multiply(weight, opset.multiply(x, inverse))


def _layer_norm(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    norm = node.op
    assert isinstance(norm, F.LayerNorm)
    x = opset.mvn(inputs[0], _i64(-1), True, norm.eps, "INSIDE_SQRT")
    y = opset.multiply(x, inputs[1])
    return opset.add(y, inputs[2]) if len(inputs) == 3 else y


def _activation(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    activation = node.op
    assert isinstance(activation, F.Activation)
    act = ACTIVATIONS[activation.kind]
    if activation.kind != "silu" or not _is_f32_product(node.inputs[0]):
        return act(inputs[0])
    # Within the product, the activation would keep it from the kernel that reads f32 weights up to
    # twice as fast for few tokens; another shape between them keeps them apart. (The compiler moves
    # others, GELU for one, to the near side of the reshape.)
    columns = node.inputs[0].type.size(1)
    apart = opset.reshape(inputs[0], _i64(0, 1, columns), True)
    return opset.reshape(act(apart), _i64(0, columns), True)


def _is_f32_product(tensor: Tensor) -> bool:
    """Whether it is a linear layer's result, with its bias or without, over weights in f32."""
    product = tensor.node
    if isinstance(product.op, F.Add):
        product = product.inputs[0].node
    return (
        isinstance(product.op, F.Linear)
        and tensor.type.rank == 2
        and tensor.dtype is DType.F32
        and isinstance(product.inputs[1].node.op, F.Weight)
        and product.inputs[1].dtype is DType.F32
    )


def _scale(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Scale)
    return opset.multiply(inputs[0], _f32(node.op.factor))


def _clamp(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Clamp)
    return opset.clamp(inputs[0], node.op.low, node.op.high)


def _fill(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    fill = node.op
    assert isinstance(fill, F.Fill)
    kind = OV_TYPES[DType.F32 if fill.dtype.is_float else fill.dtype]
    return opset.broadcast(op.Constant(kind, Shape([]), [fill.value]), _i64(*fill.shape))


def _cast(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    cast = node.op
    assert isinstance(cast, F.Cast)
    if cast.dtype.is_float and node.inputs[0].dtype.is_float:
        return inputs[0]
    kind = DType.F32 if cast.dtype.is_float else cast.dtype
    return opset.convert(inputs[0], OV_TYPES[kind])


def _split(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Split)
    return opset.variadic_split(inputs[0], _scalar(-1), _i64(*node.op.sizes)).outputs()


def _concat(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return opset.concat(inputs, -1)


def _reshape(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Reshape)
    return opset.reshape(inputs[0], _i64(0, *node.op.tail), True)


def _rotary_angles(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # Under bf16 arithmetic, too, the compiler computes what a fused rotary reads in f32.
    angles = node.op
    assert isinstance(angles, F.RotaryAngles)
    frequencies = np.asarray([angles.frequencies * 2], np.float32)
    positions = opset.unsqueeze(opset.convert(inputs[0], "f32"), _i64(1))
    product = opset.multiply(positions, opset.constant(frequencies))
    tables = [opset.cos(product), opset.sin(product)]
    if angles.factor != 1.0:
        tables = [opset.multiply(table, _f32(angles.factor)) for table in tables]
    return tables


def _rotary(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # Slices that end at INT32_MAX, rank 4 and [-second, first] are what becomes one RoPE node.
    rotary = node.op
    assert isinstance(rotary, F.Rotary)
    heads, size = node.inputs[0].type.size(1), node.inputs[0].type.size(2)
    rotated = node.inputs[1].type.size(1)
    half = rotated // 2
    cos, sin = (state.table(node.inputs[i], inputs[i]) for i in (1, 2))
    x = opset.reshape(inputs[0], _i64(0, heads, 1, size), True)
    head = x if rotated == size else opset.slice(x, _i64(0), _i64(rotated), _i64(1), _i64(3))
    if rotary.interleaved:
        head = _transposed(head, heads, half, 2)  # neighbours -> halves
    first = opset.slice(head, _i64(0), _i64(half), _i64(1), _i64(3))
    second = opset.slice(head, _i64(half), _i64(INT32_MAX), _i64(1), _i64(3))
    swapped = opset.concat([opset.multiply(second, _f32(-1.0)), first], -1)
    turned = opset.add(opset.multiply(head, cos), opset.multiply(swapped, sin))
    if rotary.interleaved:
        turned = _transposed(turned, heads, 2, half)
    if rotated != size:
        rest = opset.slice(x, _i64(rotated), _i64(INT32_MAX), _i64(1), _i64(3))
        turned = opset.concat([turned, rest], -1)
    return opset.reshape(turned, _i64(0, heads, size), True)


def _transposed(x: Any, heads: int, rows: int, columns: int) -> Any:
    """[tokens, heads, 1, rows x columns] -> the same with columns x rows."""
    matrix = opset.reshape(x, _i64(0, heads, rows, columns), True)
    turned = opset.transpose(matrix, _i64(0, 1, 3, 2))
    return opset.reshape(turned, _i64(0, heads, 1, rows * columns), True)


def _attention(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    attention = node.op
    assert isinstance(attention, F.Attention)
    q, k, v, key_cache, value_cache, starts, past, table, block_starts, *more = inputs
    heads, kv_heads, size, value_size = _sizes(node)
    biases = more.pop() if isinstance(attention, F.RelativeAttention) else None
    token_types = None
    if isinstance(attention, F.ImageAttention):
        token_types = opset.convert(opset.greater_equal(more.pop(), _scalar(0)), "i32")
    sinks = more[0] if more else None
    if node.inputs[3] in state.portable_caches:
        if token_types is not None:
            raise BuildError(
                f"{node.where}: openvino has no attention within images with a soft cap; set it to"
                " null, or take engine=reference"
            )
        return state.portable.lower(
            attention,
            (q, k, v),
            (key_cache, value_cache),
            _cache_keys(node),
            (heads, kv_heads, size, value_size),
            sinks,
            biases,
        )
    attended = paged_attention(
        (
            opset.reshape(q, _i64(0, heads * size), True),
            opset.reshape(k, _i64(0, kv_heads * size), True),
            opset.reshape(v, _i64(0, kv_heads * value_size), True),
        ),
        (key_cache, value_cache),
        past_lengths=past,
        sequence_starts=starts,
        block_table=table,
        block_starts=block_starts,
        longest=state.parameter(MAX_CONTEXT, Type.i32, []),
        scale=attention.scale,
        window=attention.window,
        alibi=attention.alibi,
        sinks=None if sinks is None else opset.reshape(sinks, _i64(1, heads, 1, 1), False),
        token_types=token_types,
        heads=Heads(kv_heads, size, value_size),
    )
    return opset.reshape(attended, _i64(0, heads, value_size), True)


def _cross_attention(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.CrossAttention)
    q, k, v, *caches = inputs[:5]
    return state.portable.lower_cross(
        node.op, (q, k, v), (caches[0], caches[1]), _cache_keys(node), _sizes(node)
    )


def _sizes(node: Node) -> tuple[int, int, int, int]:
    """Heads, key heads, key size, value size of an attention."""
    q, _, v = (tensor.type for tensor in node.inputs[:3])
    return q.size(1), v.size(1), q.size(2), v.size(2)


def _cache_keys(node: Node) -> tuple[str, str]:
    keys, values = (t.node.op for t in node.inputs[3:5])
    assert isinstance(keys, F.CacheBlocks)
    assert isinstance(values, F.CacheBlocks)
    return keys.key, values.key


def _bidirectional_attention(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.BidirectionalAttention)
    padding = state.padding(node.inputs[3], inputs[3], inputs[0])
    return sequences.attention(node.op, inputs, padding)


def _route(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Route)
    return route(node.op, node.inputs[0].type.size(1), *inputs)


def _grouped_linear(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.GroupedLinear)
    x, weight, ids, *bias = inputs
    held = node.inputs[1].type.size(0)
    if node.inputs[2] not in state.orders:
        # Both products of a layer have the same experts; with another tensor of numbers, another.
        chosen = node.inputs[2].type.size(1)
        state.orders[node.inputs[2]] = ordered(ids, chosen, node.op.first, held)
    outputs = node.inputs[1].type.size(1)
    each = node.inputs[0].type.rank == 3
    return grouped_linear(x, weight, state.orders[node.inputs[2]], outputs, bias, each=each)


def _weighted_sum(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    weights = opset.unsqueeze(inputs[1], _i64(2))
    return opset.reduce_sum(opset.multiply(inputs[0], weights), _i64(1), False)


def _sequence_mean(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return sequences.mean(inputs[0], state.padding(node.inputs[1], inputs[1], inputs[0]))


def _binary(make: Callable[..., Any]) -> Callable[[Lowering, Node, list[Any]], Any]:
    return lambda state, node, inputs: make(inputs[0], inputs[1])


MAX_CONTEXT = "max_context_length"  # an input of ours: the longest sequence of a step

TABLE: dict[type[Op], Callable[[Lowering, Node, list[Any]], Any]] = {
    F.Activation: _activation,
    F.Add: _binary(opset.add),
    F.Attention: _attention,
    F.BidirectionalAttention: _bidirectional_attention,
    F.CacheBlocks: _cache,
    F.Cast: _cast,
    F.CausalConv: _causal_conv,
    F.Clamp: _clamp,
    F.Concat: _concat,
    F.CrossAttention: _cross_attention,
    F.Dequantize: _dequantize,
    F.Fill: _fill,
    F.GatedDeltaRule: _gated_delta_rule,
    F.FoldRows: _fold_rows,
    F.Gather: _gather,
    F.GroupedLinear: _grouped_linear,
    F.HeadLinear: _head_linear,
    F.ImageAttention: _attention,
    F.Input: _input,
    F.LayerNorm: _layer_norm,
    F.Linear: _linear,
    F.Mul: _binary(opset.multiply),
    F.RMSNorm: _rms_norm,
    F.RelativeAttention: _attention,
    F.RealGatedRecurrence: _real_gated_recurrence,
    F.ReplaceRows: _replace_rows,
    F.Reshape: _reshape,
    F.Rotary: _rotary,
    F.Route: _route,
    F.RotaryAngles: _rotary_angles,
    F.Scale: _scale,
    F.SelectiveScan: _selective_scan,
    F.SinkAttention: _attention,
    F.SequenceMean: _sequence_mean,
    F.Split: _split,
    F.StateSlots: _state,
    F.Weight: _weight,
    F.WeightedSum: _weighted_sum,
}

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": opset.swish,
    "gelu": lambda x: opset.gelu(x, "erf"),
    "gelu_tanh": lambda x: opset.gelu(x, "tanh"),
    "relu": opset.relu,
    "sigmoid": opset.sigmoid,
    "tanh": opset.tanh,
    "softplus": opset.softplus,
}


def _output(x: Any) -> Any:
    return x if isinstance(x, ov.Output) else x.output(0)


def _i64(*values: int) -> Any:
    return op.Constant(Type.i64, Shape([len(values)]), list(values))


def _scalar(value: int) -> Any:
    return op.Constant(Type.i64, Shape([]), [value])


def _f32(value: float) -> Any:
    return op.Constant(Type.f32, Shape([]), [value])
