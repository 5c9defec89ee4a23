"""What encoders have: attention within whole rows, and means over them.

A row of a padded step [S, L] is a whole sequence, with padding behind it that nobody sees. So are
sources, and images, whose rows are patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.tensorrt.attention import (
    IMAGE,
    SOURCE,
    STEP,
    UNSEEN,
    row_lengths,
    rows_of,
    scaled,
)
from paddock.engines.tensorrt.network import Tensor, annotate
from paddock.graph import DType, Node
from paddock.graph import ops as F

if TYPE_CHECKING:
    from paddock.engines.tensorrt.lowering import Lowering


def bidirectional_attention(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """[tokens, heads, size] -> [tokens, heads, size], by the attention layer."""
    op, network, dtype = node.op, state.network, node.inputs[0].dtype
    assert isinstance(op, F.BidirectionalAttention)
    q, k, v, _, *table = inputs
    of = _rows(node.inputs[3])
    heads, size = node.inputs[0].type.size(1), node.inputs[2].type.size(2)
    q = scaled(state, q, op.scale, dtype)
    q, k, v = (rows_of(state, x, like, of) for x, like in zip((q, k, v), node.inputs, strict=False))
    softmax = network.enum("AttentionNormalizationOp", "SOFTMAX")
    has_lengths = network.flavour.features.ragged_attention
    if has_lengths:
        none = network.enum("CausalMaskKind", "NONE")
        layer = network.layer("attention_v2", q, k, v, softmax, none)
        network.set(layer, "key_value_lengths", row_lengths(state, of))
    else:
        layer = network.layer("attention", q, k, v, softmax, False)
    seen = None if has_lengths else not_padding(state, of)
    if op.window is not None:
        near = _near(state, op.window, of)
        seen = near if seen is None else state.elementwise("AND", near, seen)
    if table:
        biases = _biases(state, op, node, table[0], of)
        if seen is not None:
            unseen = network.scalar(UNSEEN[dtype], DType.F32, 4)
            biases = network.add("select", seen, biases, unseen)
        network.set(layer, "mask", state.narrowed(biases, dtype))
    elif seen is not None:
        network.set(layer, "mask", seen)
    network.set(layer, "decomposable", True)
    annotate(layer, scale=op.scale, window=op.window)
    return state.view(network.output(layer), (-1, heads, size), before=(0, 2, 1, 3))


def sequence_mean(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """[tokens, size] -> [tokens, size]: to every token of a row the mean of those it has."""
    network, size = state.network, node.inputs[0].type.size(1)
    of = _rows(node.inputs[1])
    sizes = state.joined([state.step_shape(of), network.indices(size)], 0)
    x = state.view(state.widened(inputs[0]), sizes=sizes)
    real = state.view(not_padding(state, of), (0, -1, 1))
    zero = network.scalar(0.0, DType.F32, 3)
    total = network.add(
        "reduce",
        network.add("select", real, x, zero),
        network.enum("ReduceOperation", "SUM"),
        2,
        True,
    )
    lengths = state.view(state.widened(row_lengths(state, of)), (-1, 1, 1))
    mean = state.elementwise("DIV", total, lengths)
    # The sum with nothing is as long as the row.
    everywhere = network.add("select", real, mean, zero)
    return state.narrowed(state.view(everywhere, (-1, size)), node.outputs[0].dtype)


def _rows(starts: Any) -> str:
    """Whose rows: the operand says whose first tokens it has."""
    op = starts.node.op
    key = op.key if isinstance(op, F.Input) else ""
    return {"source_starts": SOURCE, "image_starts": IMAGE}.get(key, STEP)


def places(state: Lowering, of: str = STEP) -> Tensor:
    """i32 [L]: 0, 1, ..., for each token of a row; or [E] of a source, of an image's patches."""

    def make() -> Tensor:
        network, bounds = state.network, state.bounds
        longest = bounds.longest(of)
        numbers = network.constant(np.arange(longest, dtype=np.int32), DType.I32)
        length = network.add("slice", state.step_shape(of), (1,), (1,), (1,))
        layer = network.layer("slice", numbers, (0,), (1,), (1,))
        network.set_input(layer, 2, length)
        return network.output(layer)

    return state.once(("places", of), make)


def not_padding(state: Lowering, of: str = STEP) -> Tensor:
    """bool [S, 1, 1, L]."""

    def make() -> Tensor:
        at = state.view(places(state, of), (1, 1, 1, -1))
        lengths = state.view(row_lengths(state, of), (-1, 1, 1, 1))
        return state.elementwise("LESS", at, lengths)

    return state.once(("not padding", of), make)


def _distances(state: Lowering, of: str, rank: int) -> Tensor:
    """i32 [..., L, L]: the key's place less the query's."""

    def make() -> Tensor:
        at, ones = places(state, of), (1,) * (rank - 2)
        return state.elementwise(
            "SUB", state.view(at, (*ones, 1, -1)), state.view(at, (*ones, -1, 1))
        )

    return state.once(("distances in a row", of, rank), make)


def _near(state: Lowering, window: int, of: str) -> Tensor:
    """bool [1, 1, L, L]: whether a key is at most so many places before a query, or behind it."""

    def make() -> Tensor:
        beyond = state.network.scalar(window + 1, DType.I32, 4)
        return state.elementwise("LESS", state.unary("ABS", _distances(state, of, 4)), beyond)

    return state.once(("near", window, of), make)


def _biases(
    state: Lowering, op: F.BidirectionalAttention, node: Node, table: Tensor, of: str
) -> Tensor:
    """f32 [1, heads, L, L]: of the table [buckets, heads], what each distance's bucket has."""

    def make() -> Tensor:
        network, bounds = state.network, state.bounds
        most = bounds.longest(of) - 1
        assert op.buckets is not None
        by_bucket = state.view(
            state.widened(table), (1, node.inputs[0].type.size(1), op.buckets), before=(1, 0)
        )
        buckets = op.bucket_of(np.arange(-most, most + 1)).astype(np.int32)
        by_distance = network.add("gather", by_bucket, network.constant(buckets, DType.I32), 2)
        from_least = network.scalar(most, DType.I32, 2)
        from_least = state.elementwise("SUM", _distances(state, of, 2), from_least)
        return network.add("gather", by_distance, from_least, 2)

    return state.once(("biases", op.max_distance, id(table), of), make)
