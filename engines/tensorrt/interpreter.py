"""What a TensorRT network computes, evaluated in NumPy layer by layer.

It walks the INetworkDefinition that TensorRT holds, not Paddock's graph: a mistake in a lowering is
in it. The shape that TensorRT inferred for each tensor, and its type, are compared with what was
computed. Floats narrower than f32 are computed in f32 and rounded after each layer.

Semantics are those of NVIDIA's documentation of each layer, and for attention with lengths those of
the kernels that TensorRT for RTX generates (docs/decisions/0020-tensorrt-forms.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import erf
from typing import Any

import ml_dtypes
import numpy as np

from paddock.graph import Array, PaddockError

Collective = Callable[[str, Array], Array]
"""(operation, this rank's array) -> what the layer gives, once all ranks have called it."""


class InterpreterError(PaddockError):
    """The network holds something that has no NumPy definition, or that disagrees with its own."""


NUMPY: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP8": np.dtype(ml_dtypes.float8_e4m3fn),
    "INT64": np.dtype(np.int64),
    "INT32": np.dtype(np.int32),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT4": np.dtype(np.int8),  # unpacked
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Step:
    """A layer on its way to be evaluated."""

    layer: Any
    kind: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


class Interpreter:
    """A network, ordered for evaluation.

    `constants` are the arrays behind constant layers, by layer name: TensorRT gives back no bf16
    or packed ones. `alter`, for tests, is called with (layer, kind, its operands) and may return
    other operands.
    """

    def __init__(self, trt: Any, network: Any, constants: Mapping[str, Array]) -> None:
        self._trt, self._network, self._constants = trt, network, constants
        self._types: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.input_names = tuple(network.get_input(i).name for i in range(network.num_inputs))
        self.output_names = tuple(network.get_output(i).name for i in range(network.num_outputs))
        for i in range(network.num_inputs):
            self._note(network.get_input(i))
        self.steps = self._ordered()

    def run(
        self, feeds: Mapping[str, Array], collective: Collective | None = None
    ) -> dict[str, Array]:
        """The network's outputs. Packed 4-bit integers are fed as they are stored."""
        values: dict[str, Any] = {}
        for name in self.input_names:
            values[name] = self._fed(name, feeds[name])
        for step in self.steps:
            operands = [None if name is None else values[name] for name in step.inputs]
            made = self._evaluate(step, operands, collective)
            for name, value in zip(step.outputs, made, strict=False):
                values[name] = self._rounded(step, name, value)
        return {name: values[name] for name in self.output_names}

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of a tensor as NumPy holds it."""
        return NUMPY[self._types[name]]

    def is_packed(self, name: str) -> bool:
        """Whether the tensor's elements lie two a byte."""
        return self._types[name] == "INT4"

    def _note(self, tensor: Any) -> None:
        self._types[tensor.name] = _name(tensor.dtype)
        self._shapes[tensor.name] = tuple(tensor.shape)

    def _ordered(self) -> list[Step]:
        waiting: list[Step] = []
        conditions: dict[str, str] = {}  # conditional -> the tensor that decides
        for i in range(self._network.num_layers):
            layer = self._network.get_layer(i)
            # The activation's own attribute of that name hides the layer's.
            is_activation = isinstance(layer, self._trt.IActivationLayer)
            kind = "ACTIVATION" if is_activation else _name(layer.type)
            layer.__class__ = getattr(self._trt, _class_of(kind))
            given = [layer.get_input(k) for k in range(layer.num_inputs)]
            if kind == "CONDITION":
                conditions[layer.conditional.name] = given[0].name
            made = [layer.get_output(k) for k in range(layer.num_outputs)]
            if kind != "ATTENTION_INPUT":
                for tensor in made:
                    self._note(tensor)
            waiting.append(
                Step(
                    layer,
                    kind,
                    tuple(None if t is None else t.name for t in given),
                    tuple(t.name for t in made),
                )
            )
        waiting = [
            replace(s, inputs=(*s.inputs, conditions[s.layer.conditional.name]))
            if s.kind == "CONDITIONAL_OUTPUT"
            else s
            for s in waiting
        ]
        known, ordered = set(self.input_names), []
        while waiting:
            ready = [s for s in waiting if all(n is None or n in known for n in s.inputs)]
            if not ready:
                raise InterpreterError(f"{waiting[0].layer.name} waits for what nobody makes")
            for step in ready:
                known.update(step.outputs)
            ordered += ready
            chosen = set(map(id, ready))
            waiting = [s for s in waiting if id(s) not in chosen]
        return ordered

    def _fed(self, name: str, array: Array) -> Array:
        if self._types[name] == "INT4":
            array = _unpacked(array)
        wanted, shape = self.dtype(name), self._shapes[name]
        if array.dtype != wanted or not _fits(shape, array.shape):
            raise InterpreterError(
                f"input {name!r} is {wanted}{list(shape)}, it was given"
                f" {array.dtype}{list(array.shape)}"
            )
        return array

    def _rounded(self, step: Step, name: str, value: Any) -> Any:
        if step.kind == "ATTENTION_INPUT":
            return value
        array = np.asarray(value).astype(self.dtype(name))
        if not _fits(self._shapes[name], array.shape):
            raise InterpreterError(
                f"{step.layer.name}: TensorRT infers {list(self._shapes[name])}, it is"
                f" {list(array.shape)}"
            )
        return array

    def _evaluate(
        self, step: Step, operands: list[Any], collective: Collective | None
    ) -> list[Any]:
        layer, kind = step.layer, step.kind
        if kind == "CONSTANT":
            return [self._constant(layer)]
        if kind == "CAST":
            return [operands[0].astype(NUMPY[_name(layer.to_type)])]
        if kind == "ATTENTION_INPUT":
            return [operands]
        if kind == "ATTENTION_OUTPUT":
            return [_attention(layer.attention, operands[0])]
        if kind == "DIST_COLLECTIVE":
            if collective is None:
                raise InterpreterError(f"{layer.name} needs other ranks")
            return [collective(json.loads(layer.metadata)["operation"], operands[0])]
        if kind not in EVALUATORS:
            raise InterpreterError(f"{layer.name}: no NumPy definition of a layer {kind}")
        return EVALUATORS[kind](layer, operands)

    def _constant(self, layer: Any) -> Array:
        array = self._constants[layer.name]
        tensor = layer.get_output(0)
        if _name(tensor.dtype) == "INT4":
            array = _unpacked(array)
        return array.reshape(tuple(layer.shape))


def _attention(attention: Any, operands: list[Any]) -> Array:
    """Query i of row s sees key j where j <= i + (length[s] - L), L the padded queries of a row."""
    q, k, v, mask, _, _, lengths = (list(operands) + [None] * 7)[:7]
    q, k, v = _wide(q), _wide(k), _wide(v)
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = q @ k.swapaxes(-1, -2)
    queries, keys = scores.shape[2:]
    i, j = np.arange(queries)[:, None], np.arange(keys)
    count = np.full(len(q), keys) if lengths is None else lengths.astype(np.int64)
    seen = (j < count[:, None, None])[:, None]
    causal = _name(attention.causal_kind) if hasattr(attention, "causal_kind") else "NONE"
    if causal == "LOWER_RIGHT":
        seen = seen & (j <= i + (count[:, None, None] - queries))[:, None]
    elif causal == "UPPER_LEFT" or attention.causal:
        seen = seen & (j <= i)
    if mask is not None and mask.dtype == np.bool_:
        seen = seen & mask
    elif mask is not None:
        scores = scores + _wide(mask)
    scores = np.where(seen, scores, -np.inf)
    largest = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return weights @ v


def _cache_update(layer: Any, x: list[Any]) -> list[Any]:
    cache, update, at = x[0].copy(), x[1], x[2]
    length = update.shape[2]
    for row, start in enumerate(at):
        if start + length <= cache.shape[2]:  # else TensorRT drops the row's update
            cache[row, :, start : start + length] = update[row]
    return [cache]


def _rotary(layer: Any, x: list[Any]) -> list[Any]:
    wide, cos, sin = (_wide(t) for t in x[:3])
    if len(x) > 3 and x[3] is not None:
        cos, sin = cos[x[3]], sin[x[3]]
    cos, sin = cos[:, None], sin[:, None]
    turning = layer.rotary_embedding_dim or wide.shape[-1]
    head, rest = wide[..., :turning], wide[..., turning:]
    if layer.interleaved:
        a, b = head[..., 0::2], head[..., 1::2]
        turned = np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(head.shape)
    else:
        a, b = np.split(head, 2, -1)
        turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return [np.concatenate([turned, rest], -1)]


def _shuffle(layer: Any, x: list[Any]) -> list[Any]:
    array = x[0].transpose(tuple(layer.first_transpose)[: x[0].ndim])
    wanted = x[1] if len(x) > 1 and x[1] is not None else layer.reshape_dims
    if wanted is not None:
        sizes = [
            array.shape[i] if d == 0 and layer.zero_is_placeholder else int(d)
            for i, d in enumerate(wanted)
        ]
        array = array.reshape(sizes)
    return [array.transpose(tuple(layer.second_transpose)[: array.ndim])]


def _slice(layer: Any, x: list[Any]) -> list[Any]:
    given = [*x[1:], None, None, None]
    own = (layer.start, layer.shape, layer.stride)
    start, size, stride = (
        tuple(o if g is None else g) for g, o in zip(given[:3], own, strict=True)
    )
    axes = layer.axes
    axes = range(x[0].ndim) if axes is None or len(tuple(axes)) == 0 else tuple(axes)
    index = [slice(None)] * x[0].ndim
    for axis, a, n, step in zip(axes, start, size, stride, strict=True):
        index[axis] = slice(int(a), int(a) + int(n) * int(step), int(step))
    return [x[0][tuple(index)]]


def _gather(layer: Any, x: list[Any]) -> list[Any]:
    mode, shared = _name(layer.mode), layer.num_elementwise_dims
    if x[1].size and (x[1].min() < 0 or x[1].max() >= x[0].shape[layer.axis]):
        raise InterpreterError(f"{layer.name}: an index is outside of {x[0].shape}")
    if mode == "ELEMENT":
        return [np.take_along_axis(x[0], x[1], axis=layer.axis)]
    if mode != "DEFAULT" or shared > 1 or (shared and layer.axis != 1):
        raise InterpreterError(f"{layer.name}: no NumPy definition of this gather")
    if shared:  # each row of the first axis by indices of its own
        return [np.stack([row[index] for row, index in zip(*x, strict=True)])]
    return [np.take(x[0], x[1], axis=layer.axis)]


def _matrix_multiply(layer: Any, x: list[Any]) -> list[Any]:
    a, b = _wide(x[0]), _wide(x[1])
    a = a.swapaxes(-1, -2) if _name(layer.op0) == "TRANSPOSE" else a
    b = b.swapaxes(-1, -2) if _name(layer.op1) == "TRANSPOSE" else b
    return [a @ b]


def _dequantize(layer: Any, x: list[Any]) -> list[Any]:
    values, scale = _wide(x[0]).astype(np.float32), _wide(x[1])
    if scale.ndim == 1 and values.ndim > 1:
        shape = [1] * values.ndim
        shape[layer.axis] = -1
        return [values * scale.reshape(shape)]
    for axis in range(scale.ndim):
        scale = np.repeat(scale, values.shape[axis] // scale.shape[axis], axis)
    return [values * scale]


def _softmax(layer: Any, x: list[Any]) -> list[Any]:
    axis = int(layer.axes).bit_length() - 1
    wide = _wide(x[0])
    weights = np.exp(wide - wide.max(axis, keepdims=True))
    return [weights / weights.sum(axis, keepdims=True)]


def _reduce(layer: Any, x: list[Any]) -> list[Any]:
    axes = tuple(i for i in range(x[0].ndim) if layer.axes >> i & 1)
    return [REDUCTIONS[_name(layer.op)](_wide(x[0]), axis=axes, keepdims=layer.keep_dims)]


def _topk(layer: Any, x: list[Any]) -> list[Any]:
    axis = int(layer.axes).bit_length() - 1
    sign = -1 if _name(layer.op) == "MAX" else 1
    order = np.argsort(sign * _wide(x[0]), axis=axis, kind="stable")
    order = np.take(order, np.arange(layer.k), axis=axis)
    return [np.take_along_axis(x[0], order, axis), order]


def _cumulative(layer: Any, x: list[Any]) -> list[Any]:
    axis = int(np.asarray(x[1]).item())
    wide = _wide(x[0])
    wide = np.flip(wide, axis) if layer.reverse else wide
    total = np.cumsum(wide, axis)
    total = total - wide if layer.exclusive else total
    return [np.flip(total, axis) if layer.reverse else total]


def _wide(x: Array) -> Array:
    """Narrow floats as f32."""
    return x.astype(np.float32) if x.dtype.kind in "fV" and x.dtype.itemsize < 4 else x


def _unpacked(array: Array) -> Array:
    """u8 [..., n] -> i8 [..., 2n]: 4-bit integers, the low half of a byte first."""
    low, high = (array & 0xF).astype(np.int8), (array >> 4).astype(np.int8)
    both = np.stack([low, high], -1).reshape(*array.shape[:-1], -1)
    return np.where(both > 7, both - 16, both).astype(np.int8)


def _fits(inferred: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return len(inferred) == len(found) and all(
        a in (-1, b) for a, b in zip(inferred, found, strict=True)
    )


def _name(member: Any) -> str:
    return str(member).rpartition(".")[2]


def _class_of(kind: str) -> str:
    irregular = {
        "CONDITIONAL_INPUT": "IIfConditionalInputLayer",
        "CONDITIONAL_OUTPUT": "IIfConditionalOutputLayer",
        "ELEMENTWISE": "IElementWiseLayer",
        "KV_CACHE_UPDATE": "IKVCacheUpdateLayer",
        "SOFTMAX": "ISoftMaxLayer",
        "TOPK": "ITopKLayer",
        "PLUGIN_V3": "IPluginV3Layer",
    }
    return irregular.get(kind) or f"I{''.join(w.capitalize() for w in kind.split('_'))}Layer"


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":  # towards zero, as in C
        return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)
    return a / b


def _sigmoid(x: Array) -> Array:
    # With exp(-|x|) nothing overflows, and what is near 0 keeps its digits.
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, np.float32(1)) / (np.float32(1) + e)


_ERF = np.vectorize(erf, otypes=[np.float32])

BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "SUM": np.add,
    "PROD": np.multiply,
    "SUB": np.subtract,
    "DIV": _divide,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "POW": np.power,
    "AND": np.logical_and,
    "OR": np.logical_or,
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
    "FLOOR_DIV": np.floor_divide,
}
UNARY: dict[str, Callable[[Array], Array]] = {
    "SQRT": np.sqrt,
    "RECIP": np.reciprocal,
    "EXP": np.exp,
    "LOG": np.log,
    "ABS": np.abs,
    "NEG": np.negative,
    "NOT": np.logical_not,
    "SIN": np.sin,
    "COS": np.cos,
    "ERF": _ERF,
}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "SIGMOID": _sigmoid,
    "RELU": lambda x: np.maximum(x, np.float32(0)),
    "TANH": np.tanh,
    "GELU_ERF": lambda x: x * np.float32(0.5) * (1 + _ERF(x * np.float32(0.5**0.5))),
    "GELU_TANH": lambda x: (
        np.float32(0.5)
        * x
        * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)))
    ),
    "SOFTPLUS": lambda x: np.logaddexp(x, np.float32(0)),
}
REDUCTIONS: dict[str, Callable[..., Array]] = {
    "SUM": np.sum,
    "AVG": np.mean,
    "MAX": np.max,
    "MIN": np.min,
    "PROD": np.prod,
}
EVALUATORS: dict[str, Callable[[Any, list[Any]], list[Any]]] = {
    "ACTIVATION": lambda layer, x: [ACTIVATIONS[_name(layer.type)](_wide(x[0]))],
    "CONCATENATION": lambda layer, x: [np.concatenate(x, layer.axis)],
    "CONDITION": lambda layer, x: [],
    "CONDITIONAL_INPUT": lambda layer, x: [x[0]],
    "CONDITIONAL_OUTPUT": lambda layer, x: [x[0] if x[2] else x[1]],
    "CUMULATIVE": _cumulative,
    "DEQUANTIZE": _dequantize,
    "ELEMENTWISE": lambda layer, x: [BINARY[_name(layer.op)](_wide(x[0]), _wide(x[1]))],
    "GATHER": _gather,
    "IDENTITY": lambda layer, x: [x[0]],
    "KV_CACHE_UPDATE": _cache_update,
    "MATRIX_MULTIPLY": _matrix_multiply,
    "REDUCE": _reduce,
    "ROTARY_EMBEDDING": _rotary,
    "SELECT": lambda layer, x: [np.where(x[0], x[1], x[2])],
    "SHAPE": lambda layer, x: [np.array(x[0].shape, np.int64)],
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "TOPK": _topk,
    "UNARY": lambda layer, x: [UNARY[_name(layer.op)](_wide(x[0]))],
}
