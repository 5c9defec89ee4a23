"""Experts in OpenVINO's ops: rows in the order of their experts, one grouped product over them.

The CPU plugin turns `GroupedMatMul` over constant weights into its own kernel, which reads the
weights of the chosen experts only. It takes rows sorted by expert, and where each expert's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import opset16 as opset
from openvino.opset17 import grouped_matmul

from paddock.graph import ops as F

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Order:
    """(token, chosen) pairs, numbered token * chosen + i, sorted by expert."""

    chosen: int
    pairs: Any  # i32 [pairs]: the pair at each place of the order
    places: Any  # i32 [pairs]: the place of each pair
    ends: Any  # i32 [experts held]: the place behind each expert's last
    expert: Any  # i32 [pairs]: the expert of each pair, as the weights hold it
    held: Any | None  # f32 [pairs, 1]: 1 where the expert is held here; None where all are


def route(op: F.Route, experts: int, logits: Any, bias: Any | None = None) -> list[Any]:
    """Weights [tokens, chosen] and numbers i64 [tokens, chosen]."""
    if op.scores == "sparsemixer":
        weights, ids = _sparsemixer(op, experts, logits)
    else:
        scores = logits
        if op.scores == "softmax":
            scores = opset.softmax(logits, -1)
        elif op.scores == "sigmoid":
            scores = opset.sigmoid(logits)
        preferred = scores if bias is None else opset.add(scores, bias)
        if op.kept_groups < op.groups:
            preferred = _within_groups(op, experts, preferred)
        ids = _best(preferred, op.chosen).output(1)
        weights = opset.gather_elements(scores, ids, 1)
        if op.scores == "chosen_softmax":
            weights = opset.softmax(weights, -1)
    if op.normalize:
        total = opset.reduce_sum(weights, _i64([1]), True)
        weights = opset.divide(weights, opset.add(total, _f32(op.epsilon)))
    if op.scale != 1.0:
        weights = opset.multiply(weights, _f32(op.scale))
    return [weights, opset.convert(ids, "i64")]


def _within_groups(op: F.Route, experts: int, scores: Any) -> Any:
    """The scores, as low as can be outside the groups that are kept."""
    shape = [0, op.groups, experts // op.groups]
    grouped = opset.reshape(scores, _i64(shape), True)
    best = opset.reduce_sum(_best(grouped, op.group_best).output(0), _i64([2]), False)
    kept = _best(best, op.kept_groups).output(1)
    each = opset.one_hot(kept, _i64(op.groups), opset.constant(True), opset.constant(False), -1)
    mask = opset.unsqueeze(opset.reduce_logical_or(each, _i64([1]), False), _i64([2]))
    masked = opset.select(mask, grouped, _f32(LOWEST))
    return opset.reshape(masked, _i64([0, experts]), True)


def _sparsemixer(op: F.Route, experts: int, logits: Any) -> tuple[Any, Any]:
    weights, ids, left = [], [], logits
    lowest = _f32(LOWEST)
    for _ in range(2):
        top = _best(left, 1)
        best, chosen = top.output(0), top.output(1)
        nearness = opset.divide(
            opset.subtract(best, logits), opset.maximum(opset.abs(logits), best)
        )
        far = opset.greater(nearness, _f32(2 * op.jitter))
        gates = opset.softmax(opset.select(far, lowest, left), -1)
        weights.append(opset.gather_elements(gates, chosen, 1))
        ids.append(chosen)
        taken = opset.one_hot(
            opset.squeeze(chosen, _i64([1])),
            _i64(experts),
            opset.constant(True),
            opset.constant(False),
            -1,
        )
        left = opset.select(taken, lowest, left)
    return opset.concat(weights, 1), opset.concat(ids, 1)


def ordered(ids: Any, chosen: int, first: int | None, held: int) -> Order:
    """The order of the pairs of i64 ids [tokens, chosen] among the experts first : first + held,
    or among all of them where `first` is None.

    Pairs of experts that are held elsewhere come last, with the last expert, so that places are
    never outside the weights; what they give is made 0 afterwards.
    """
    expert = opset.convert(opset.reshape(ids, _i64([-1]), False), "i32")
    here = None
    if first is not None:
        expert = opset.subtract(expert, _i32(first))
        inside = opset.logical_and(
            opset.greater_equal(expert, _i32(0)), opset.less(expert, _i32(held))
        )
        here = opset.unsqueeze(opset.convert(inside, "f32"), _i64([1]))
        expert = opset.select(inside, expert, _i32(held - 1))
    count = opset.convert(opset.gather(opset.shape_of(expert), _i64(0), _i64(0)), "i32")
    ramp = opset.range(_i32(0), count, _i32(1), "i32")
    # Unique keys: the order within an expert is that of the tokens.
    keys = opset.add(opset.multiply(expert, count), ramp)
    pairs = opset.topk(keys, count, 0, "min", "value", "i32").output(1)
    places = opset.topk(pairs, count, 0, "min", "value", "i32").output(1)
    each = opset.one_hot(expert, _i64(held), _i32(1), _i32(0), -1)
    ends = opset.cumsum(opset.reduce_sum(each, _i64([0]), False), _i64(0))
    return Order(chosen, pairs, places, ends, expert, here)


def grouped_linear(
    x: Any, weight: Any, order: Order, outputs: int, bias: Sequence[Any], *, each: bool
) -> Any:
    """x [tokens, inputs], or with `each` [tokens, chosen, inputs] -> [tokens, chosen, outputs]."""
    rows = order.pairs
    if each:
        shape = opset.shape_of(x)
        inputs = opset.gather(shape, _i64([2]), _i64(0))
        x = opset.reshape(x, opset.concat([_i64([-1]), inputs], 0), False)
    elif order.chosen > 1:
        rows = opset.divide(rows, _i32(order.chosen))
    y = grouped_matmul(opset.gather(x, rows, _i64(0)), weight, order.ends)
    y = opset.gather(y, order.places, _i64(0))
    if bias:
        y = opset.add(y, opset.gather(bias[0], order.expert, _i64(0)))
    if order.held is not None:
        y = opset.multiply(y, order.held)
    return opset.reshape(y, _i64([-1, order.chosen, outputs]), False)


def _best(x: Any, count: int) -> Any:
    """The `count` largest along the last axis, largest first; of equals the first."""
    return opset.topk(x, _i64(count), -1, "max", "value", "i32", True)


def _f32(value: float) -> Any:
    return opset.constant(np.float32(value))


def _i32(value: int) -> Any:
    return opset.constant(np.int32(value))


def _i64(value: int | list[int]) -> Any:
    return opset.constant(np.array(value, np.int64))
