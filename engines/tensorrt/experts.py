"""Mixtures of experts: the choice, and products with the weights of each expert that was chosen.

TensorRT's own layer for them has no kernel on the targets of TensorRT for RTX. A product is made in
one of two forms, as the number of tokens of a call says: a few tokens fetch the weights of their
experts; many meet all experts, of whose products each token keeps those that it asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.tensorrt.network import Tensor
from paddock.graph import DType, Node
from paddock.graph import ops as F

if TYPE_CHECKING:
    from paddock.engines.tensorrt.lowering import Lowering

_NEVER = -3e38
"""A score that is never the best. Not infinity, of which differences are NaN."""


def route(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """logits [tokens, experts] -> f32 and i32 [tokens, chosen]."""
    op = node.op
    assert isinstance(op, F.Route)
    logits = state.widened(inputs[0])
    if op.scores == "sparsemixer":
        weights, ids = _sparsemixer(state, op, logits)
    else:
        scores = logits
        if op.scores == "softmax":
            scores = softmax(state, logits)
        elif op.scores == "sigmoid":
            sigmoid = state.network.enum("ActivationType", "SIGMOID")
            scores = state.network.add("activation", logits, sigmoid)
        preferred = scores
        if len(inputs) > 1:
            bias = state.with_rank(state.widened(inputs[1]), 2)
            preferred = state.elementwise("SUM", scores, bias)
        _, ids = _best(state, _within_groups(state, op, preferred), op.chosen)
        weights = _picked(state, scores, ids)
        if op.scores == "chosen_softmax":
            weights = softmax(state, weights)
    if op.normalize:
        total = _reduced(state, "SUM", weights, 1, keep=True)
        small = state.network.scalar(op.epsilon, DType.F32, 2)
        weights = state.elementwise("DIV", weights, state.elementwise("SUM", total, small))
    if op.scale != 1.0:
        factor = state.network.scalar(op.scale, DType.F32, 2)
        weights = state.elementwise("PROD", weights, factor)
    return weights, ids


def grouped_linear(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """x [tokens, inputs] or [tokens, chosen, inputs] -> [tokens, chosen, outputs]."""
    op, network = node.op, state.network
    assert isinstance(op, F.GroupedLinear)
    x, weight, ids, *bias = inputs
    dtype, chosen = node.outputs[0].dtype, node.outputs[0].type.size(1)
    experts, outputs, size = (node.inputs[1].type.size(axis) for axis in range(3))
    one_input = node.inputs[0].type.rank == 2
    ids = state.narrowed(ids, DType.I32)
    held, present = ids, None
    if op.first is not None:
        held, present = _share(state, ids, op.first, experts)
    chosen_of = None if one_input else _one_hot(state, held, present, experts, chosen, dtype)

    def fetched(x: Tensor, weight: Tensor, held: Tensor, *_: Tensor) -> Tensor:
        none = network.enum("MatrixOperation", "NONE")
        own = network.add("gather", weight, held, 0)  # [tokens, chosen, outputs, inputs]
        column = state.view(x, (-1, 1 if one_input else chosen, size, 1))
        y = network.add("matrix_multiply", own, none, column, none)
        return state.view(y, (-1, chosen, outputs))

    def all_of_them(x: Tensor, weight: Tensor, held: Tensor, *chosen_of: Tensor) -> Tensor:
        none, turned = (network.enum("MatrixOperation", n) for n in ("NONE", "TRANSPOSE"))
        if one_input:
            x = state.view(x, (1, -1, size))
        else:  # each expert's inputs, zeros from tokens that did not choose it
            x = network.add("matrix_multiply", chosen_of[0], turned, x, none)
            x = state.view(x, after=(1, 0, 2))
        y = network.add("matrix_multiply", x, none, weight, turned)  # [experts, tokens, outputs]
        layer = network.layer(
            "gather_v2", state.view(y, after=(1, 0, 2)), held, network.enum("GatherMode", "DEFAULT")
        )
        network.set(layer, "num_elementwise_dims", 1)
        network.set(layer, "axis", 1)
        return network.output(layer)

    operands = [x, weight, held, *([] if chosen_of is None else [chosen_of])]
    few = experts // chosen  # tokens whose experts' weights are no more than all there are
    if few:
        y = network.conditional(_at_most(state, ids, few), operands, fetched, all_of_them)
    else:
        y = all_of_them(*operands)
    if bias:
        y = state.elementwise("SUM", y, network.add("gather", bias[0], held, 0))
    if present is not None:
        zero = network.scalar(0.0, dtype, 3)
        y = network.add("select", state.view(present, (-1, chosen, 1)), y, zero)
    return y


def weighted_sum(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    y, weights = (state.widened(x) for x in inputs)
    weights = state.view(weights, (-1, node.inputs[1].type.size(1), 1))
    total = _reduced(state, "SUM", state.elementwise("PROD", y, weights), 1)
    return state.narrowed(total, node.outputs[0].dtype)


def softmax(state: Lowering, x: Tensor) -> Tensor:
    """Over the last axis."""
    layer = state.network.layer("softmax", x)
    state.network.set(layer, "axes", 1 << (len(x.shape) - 1))
    return state.network.output(layer)


def _within_groups(state: Lowering, op: F.Route, scores: Tensor) -> Tensor:
    """Scores of experts outside of the groups that are kept can never be the best."""
    if op.kept_groups == op.groups:
        return scores
    network = state.network
    experts = scores.shape[1]
    grouped = state.view(scores, (-1, op.groups, experts // op.groups))
    best, _ = _best(state, grouped, op.group_best)
    _, kept = _best(state, _reduced(state, "SUM", best, 2), op.kept_groups)
    is_kept = _reduced(
        state, "MAX", _hot(state, kept, op.groups, op.kept_groups, DType.F32), 1
    )  # [tokens, groups]
    is_kept = network.add("cast", is_kept, network.dtype(DType.BOOL))
    is_kept = state.view(is_kept, (-1, op.groups, 1))
    never = network.scalar(_NEVER, DType.F32, 3)
    return state.view(network.add("select", is_kept, grouped, never), (-1, experts))


def _sparsemixer(state: Lowering, op: F.Route, logits: Tensor) -> tuple[Tensor, Tensor]:
    network, experts = state.network, logits.shape[1]
    never = network.scalar(_NEVER, DType.F32, 2)
    left, weights, ids = logits, [], []
    for _ in range(2):
        best, chosen = _best(state, left, 1)
        distance = state.elementwise("SUB", best, logits)
        size = state.elementwise("MAX", state.unary("ABS", logits), best)
        share = state.elementwise("DIV", distance, size)
        bound = network.scalar(2 * op.jitter, DType.F32, 2)
        far = state.elementwise("GREATER", share, bound)
        near = softmax(state, network.add("select", far, never, left))
        weights.append(_picked(state, near, chosen))
        ids.append(chosen)
        taken = state.elementwise("EQUAL", chosen, _numbers(state, experts))
        left = network.add("select", taken, never, left)
    return state.joined(weights, 1), state.joined(ids, 1)


def _share(state: Lowering, ids: Tensor, first: int, experts: int) -> tuple[Tensor, Tensor]:
    """Numbers among this rank's experts, any where it has none; and whether it has."""
    network = state.network
    own = state.elementwise("SUB", ids, network.scalar(first, DType.I32, 2))
    lowest, highest = (network.scalar(n, DType.I32, 2) for n in (0, experts - 1))
    held = state.elementwise("MIN", state.elementwise("MAX", own, lowest), highest)
    return held, state.elementwise("EQUAL", own, held)


def _one_hot(
    state: Lowering, held: Tensor, present: Tensor | None, experts: int, chosen: int, dtype: DType
) -> Tensor:
    """[tokens, chosen, experts] of ones and zeros; zeros for experts of other ranks."""
    if present is not None:
        held = state.network.add("select", present, held, state.network.scalar(-1, DType.I32, 2))
    return _hot(state, held, experts, chosen, dtype)


def _hot(state: Lowering, ids: Tensor, count: int, chosen: int, dtype: DType) -> Tensor:
    column = state.view(ids, (-1, chosen, 1))
    numbers = state.view(_numbers(state, count), (1, 1, count))
    return state.narrowed(state.elementwise("EQUAL", column, numbers), dtype)


def _numbers(state: Lowering, count: int) -> Tensor:
    """i32 [1, count]: 0, 1, ..."""
    return state.once(
        ("numbers", count),
        lambda: state.network.constant(np.arange(count, dtype=np.int32)[None], DType.I32),
    )


def _at_most(state: Lowering, ids: Tensor, few: int) -> Tensor:
    """bool []: whether there are so few tokens."""
    network = state.network
    shape = network.add("shape", ids)
    tokens = state.view(network.add("slice", shape, (0,), (1,), (1,)), ())
    return state.elementwise("LESS", tokens, network.scalar(few + 1, DType.I64, 0))


def _best(state: Lowering, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Along the last axis, best first: values, and i32 places."""
    network = state.network
    kind = network.enum("TopKOperation", "MAX")
    layer = network.layer("topk", scores, kind, count, 1 << (len(scores.shape) - 1))
    return network.output(layer, 0), network.output(layer, 1)


def _picked(state: Lowering, scores: Tensor, ids: Tensor) -> Tensor:
    """scores [tokens, experts], ids [tokens, chosen] -> [tokens, chosen]."""
    network = state.network
    layer = network.layer("gather_v2", scores, ids, network.enum("GatherMode", "ELEMENT"))
    network.set(layer, "axis", 1)
    return network.output(layer)


def _reduced(state: Lowering, operation: str, x: Tensor, axis: int, keep: bool = False) -> Tensor:
    kind = state.network.enum("ReduceOperation", operation)
    return state.network.add("reduce", x, kind, 1 << axis, keep)
