"""One function an op: from the graph to OpenVINO, in the forms for which it has fast kernels.

Every float is f32 in OpenVINO's graph; the precision of execution is a setting of the session, and
the compiler places the conversions. What each form is for is in docs/decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import PartialShape, Shape, Type, op
from openvino import opset16 as opset

from paddock.engines.openvino.weights import OV_TYPES, Weights
from paddock.engines.protocol import BuildError
from paddock.graph import DType, Graph, Node
from paddock.graph import ops as F
from paddock.graph.op import Op

INT32_MAX = 2**31 - 1


@dataclass
class Lowering:
    """A graph on its way: parameters by key, weights, and the values made so far."""

    graph: Graph
    weights: Weights
    parameters: dict[str, Any]

    def parameter(self, key: str, kind: Type, shape: list[int]) -> Any:
        if key not in self.parameters:
            node = op.Parameter(kind, PartialShape(shape))
            node.set_friendly_name(key)
            node.output(0).get_tensor().set_names({key})
            self.parameters[key] = node
        return self.parameters[key]


def lower(graph: Graph, weights: Weights) -> ov.Model:
    """The whole graph. Raises `BuildError` under the module path of what cannot be lowered."""
    state = Lowering(graph, weights, {})
    values: dict[int, Any] = {}
    for node in graph.nodes:
        inputs = [values.get(id(t)) for t in node.inputs]
        try:
            made = _lower_node(state, node, inputs)
        except (RuntimeError, TypeError) as error:  # what OpenVINO raises
            raise BuildError(f"{node.where}: {node.op.name}: {error}") from error
        outputs = made if isinstance(made, list | tuple) else [made]
        for tensor, value in zip(node.outputs, outputs, strict=True):
            values[id(tensor)] = value
    results = []
    for i, tensor in enumerate(graph.outputs):
        result = op.Result(_output(values[id(tensor)]))
        result.output(0).get_tensor().set_names({f"output_{i}"})
        results.append(result)
    return ov.Model(results, list(state.parameters.values()), "paddock")


def lowers(kind: Op) -> bool:
    """Whether the table below has the op."""
    return type(kind) in TABLE


def _lower_node(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    own = TABLE.get(type(node.op))
    if own is not None:
        return own(state, node, inputs)
    return node.op.lowerings["openvino"](node.op, *inputs)


def _input(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    source = node.op
    assert isinstance(source, F.Input)
    shape = [d if isinstance(d, int) else -1 for d in source.shape]
    return state.parameter(source.key, OV_TYPES[source.dtype], shape)


def _cache(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # The compiler chooses type and layout, and tells them by the compiled model's inputs.
    source = node.op
    assert isinstance(source, F.CacheBlocks)
    return state.parameter(source.key, Type.dynamic, [-1] * 4)


def _weight(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    weight = node.op
    assert isinstance(weight, F.Weight)
    if not weight.dtype.is_float:
        return None  # read by the dequantize that stands over it
    return state.weights.widened(weight)


def _dequantize(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    integers, scales = (t.node.op for t in node.inputs)
    if not (isinstance(integers, F.Weight) and isinstance(scales, F.Weight)):
        raise BuildError(f"{node.where}: dequantize expects stored integers and scales")
    rows, columns = node.outputs[0].type.size(0), node.outputs[0].type.size(1)
    groups = node.inputs[1].type.size(1)
    per_row = groups == 1
    shape = (rows, columns) if per_row else (rows, groups, columns // groups)
    scale_shape = (rows, 1) if per_row else (rows, groups, 1)
    kind = str(scales.dtype)
    values = opset.convert(state.weights.constant(integers, shape), kind)
    weight = opset.multiply(values, state.weights.constant(scales, scale_shape))
    if not per_row:
        weight = opset.reshape(weight, _i64(rows, columns), False)
    return opset.convert(weight, "f32")


def _linear(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return opset.matmul(inputs[0], inputs[1], False, True)


def _gather(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return opset.gather(inputs[0], inputs[1], _scalar(0))


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
    return ACTIVATIONS[activation.kind](inputs[0])


def _scale(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    assert isinstance(node.op, F.Scale)
    return opset.multiply(inputs[0], _f32(node.op.factor))


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
    # Both tables [tokens, 1, 1, 2 x frequencies]: the rank that the rotary form below needs.
    angles = node.op
    assert isinstance(angles, F.RotaryAngles)
    frequencies = np.asarray([angles.frequencies * 2], np.float32)
    positions = opset.unsqueeze(opset.convert(inputs[0], "f32"), _i64(1))
    product = opset.multiply(positions, opset.constant(frequencies))
    tables = [opset.cos(product), opset.sin(product)]
    if angles.factor != 1.0:
        tables = [opset.multiply(table, _f32(angles.factor)) for table in tables]
    return [opset.unsqueeze(table, _i64(1, 2)) for table in tables]


def _rotary(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    # Slices that end at INT32_MAX, rank 4 and [-second, first] are what becomes one RoPE node.
    rotary, (x, cos, sin) = node.op, inputs
    assert isinstance(rotary, F.Rotary)
    heads, size = node.inputs[0].type.size(1), node.inputs[0].type.size(2)
    rotated = node.inputs[1].type.size(1)
    x = opset.reshape(x, _i64(0, heads, 1, size), True)
    head = x if rotated == size else opset.slice(x, _i64(0), _i64(rotated), _i64(1), _i64(3))
    if rotary.interleaved:
        turned = _interleaved(head, cos, sin, heads, rotated)
    else:
        half = rotated // 2
        first = opset.slice(head, _i64(0), _i64(half), _i64(1), _i64(3))
        second = opset.slice(head, _i64(half), _i64(INT32_MAX), _i64(1), _i64(3))
        swapped = opset.concat([opset.multiply(second, _f32(-1.0)), first], -1)
        turned = opset.add(opset.multiply(head, cos), opset.multiply(swapped, sin))
    if rotated != size:
        rest = opset.slice(x, _i64(rotated), _i64(INT32_MAX), _i64(1), _i64(3))
        turned = opset.concat([turned, rest], -1)
    return opset.reshape(turned, _i64(0, heads, size), True)


def _interleaved(head: Any, cos: Any, sin: Any, heads: int, rotated: int) -> Any:
    """Pairs of neighbours: (a, b) -> (a c - b s, b c + a s)."""
    half = rotated // 2
    pairs = opset.reshape(head, _i64(0, heads, half, 2), True)
    even, odd = opset.split(pairs, _scalar(3), 2).outputs()
    # cos and sin: [tokens, 1, 1, half] -> [tokens, 1, half, 1]
    c, s = (
        opset.reshape(
            opset.slice(table, _i64(0), _i64(half), _i64(1), _i64(3)), _i64(0, 1, half, 1), True
        )
        for table in (cos, sin)
    )
    turned = opset.concat(
        [
            opset.subtract(opset.multiply(even, c), opset.multiply(odd, s)),
            opset.add(opset.multiply(odd, c), opset.multiply(even, s)),
        ],
        3,
    )
    return opset.reshape(turned, _i64(0, heads, 1, rotated), True)


def _attention(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    attention = node.op
    assert isinstance(attention, F.Attention)
    if attention.soft_cap is not None:
        raise BuildError(
            f"{node.where}: OpenVINO's paged attention has no soft cap on scores; use"
            " engine=reference for this model"
        )
    q, k, v, key_cache, value_cache, starts, past, table, block_starts = inputs
    heads, size = node.inputs[0].type.size(1), node.inputs[0].type.size(2)
    kv_heads, value_size = node.inputs[2].type.size(1), node.inputs[2].type.size(2)
    longest = state.parameter(MAX_CONTEXT, Type.i32, [])
    operands = [
        opset.reshape(q, _i64(0, heads * size), True),
        opset.reshape(k, _i64(0, kv_heads * size), True),
        opset.reshape(v, _i64(0, kv_heads * value_size), True),
        key_cache,
        value_cache,
        past,
        starts,
        table,
        block_starts,
        _f32(attention.scale),
        _i32(attention.window or 0),
        _empty(Type.f32),  # ALiBi slopes
        longest,
        _empty(Type.i32),  # score aggregation window
        _empty(Type.i32),  # rotated block indices
        _empty(Type.i32),  # rotation deltas
        _empty(Type.f32),  # rotation trigonometry
        _empty(Type.f32),  # sparse attention: threshold
        _i32(0),  # sparse attention: block size
        _i32(0),  # sparse attention: stride
        _empty(Type.f32, 0, 0, 0, 0),  # sinks
        _i32(0),  # adaptive eviction: start size
        _empty(Type.i32),  # adaptive eviction: evictable sizes
        _empty(Type.i32),  # adaptive eviction: diversity block set indices
        _empty(Type.i32),  # adaptive eviction: their starts
        _empty(Type.i32),  # token types
        _empty(Type.u8),  # query-to-query bias
        _empty(Type.i32),  # its starts
    ]
    paged = op._PagedAttentionExtension([_output(x) for x in operands])
    info = paged.get_rt_info()
    info["num_k_heads"] = info["num_v_heads"] = kv_heads
    info["k_head_size"], info["v_head_size"] = size, value_size
    return opset.reshape(paged.output(0), _i64(0, heads, value_size), True)


def _binary(make: Callable[..., Any]) -> Callable[[Lowering, Node, list[Any]], Any]:
    return lambda state, node, inputs: make(inputs[0], inputs[1])


MAX_CONTEXT = "max_context_length"  # an input of ours: the longest sequence of a step

TABLE: dict[type[Op], Callable[[Lowering, Node, list[Any]], Any]] = {
    F.Activation: _activation,
    F.Add: _binary(opset.add),
    F.Attention: _attention,
    F.CacheBlocks: _cache,
    F.Cast: _cast,
    F.Concat: _concat,
    F.Dequantize: _dequantize,
    F.Gather: _gather,
    F.Input: _input,
    F.LayerNorm: _layer_norm,
    F.Linear: _linear,
    F.Mul: _binary(opset.multiply),
    F.RMSNorm: _rms_norm,
    F.Reshape: _reshape,
    F.Rotary: _rotary,
    F.RotaryAngles: _rotary_angles,
    F.Scale: _scale,
    F.Split: _split,
    F.Weight: _weight,
}

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    # Swish of two inputs: with one, three products of the MLP become a kernel that keeps f16
    # copies of bf16 weights.
    "silu": lambda x: opset.swish(x, _f32(1.0)),
    "gelu": lambda x: opset.gelu(x, "erf"),
    "gelu_tanh": lambda x: opset.gelu(x, "tanh"),
    "relu": opset.relu,
    "sigmoid": opset.sigmoid,
    "tanh": opset.tanh,
}


def _output(x: Any) -> Any:
    return x if isinstance(x, ov.Output) else x.output(0)


def _i64(*values: int) -> Any:
    return op.Constant(Type.i64, Shape([len(values)]), list(values))


def _scalar(value: int) -> Any:
    return op.Constant(Type.i64, Shape([]), [value])


def _i32(value: int) -> Any:
    return op.Constant(Type.i32, Shape([]), [value])


def _f32(value: float) -> Any:
    return op.Constant(Type.f32, Shape([]), [value])


def _empty(kind: Type, *shape: int) -> Any:
    array = {Type.i32: np.int32, Type.f32: np.float32, Type.u8: np.uint8}[kind]
    return op.Constant(kind, Shape(list(shape or (0,))), np.array([], dtype=array))
