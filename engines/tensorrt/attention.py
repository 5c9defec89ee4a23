"""Attention over a cache in slots, as the layers that TensorRT fuses.

A padded step is [S, L]: row s of it is the sequence in slot s of the caches, which are bound from
the slot of the step's first row on. A sequence with fewer than L new tokens is padded behind them:
what the padding writes lies behind the sequence's end, where nobody looks and the next step writes.

TensorRT lets query i of row s see the keys j <= i + (length[s] - L), so that lengths are those of
the padded rows, `write_indices + L`, and not of the sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.tensorrt.bounds import IMAGES, SEQUENCES, TOKENS
from paddock.engines.tensorrt.network import Tensor, annotate
from paddock.graph import DType, Node
from paddock.graph import ops as F

if TYPE_CHECKING:
    from paddock.engines.tensorrt.lowering import Lowering

STEP, SOURCE, IMAGE = "step", "source", "image"
"""Whose rows: the call's own tokens, sources, images."""
PRESENT = "present."
"""Outputs that are caches: this, and the name of the input whose memory they share."""


def attention(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """[tokens, heads, size] -> [tokens, heads, value size], by the attention layer; by primitives
    where scores are capped, there are sinks, or values are of another size than keys."""
    op = node.op
    assert isinstance(op, F.Attention)
    q, k, v, *caches = inputs[:5]
    heads, value_size = node.inputs[0].type.size(1), node.inputs[2].type.size(2)
    keys, values = (
        updated(state, cache, rows_of(state, x, like), write_indices(state))
        for cache, x, like in zip(caches, (k, v), node.inputs[1:3], strict=True)
    )
    q = rows_of(state, scaled(state, q, op.scale, node.inputs[0].dtype), node.inputs[0])
    sinks = inputs[-1] if isinstance(op, F.SinkAttention) else None
    bias = None
    if op.alibi is not None:
        bias = _distances(state, op.alibi)
    elif isinstance(op, F.RelativeAttention):
        bias = _relative(state, op, node, inputs[-1])
    sizes_differ = value_size != node.inputs[1].type.size(2)  # which the layer refuses
    if op.soft_cap is not None or sinks is not None or sizes_differ:
        y = _written_out(state, node, q, keys, values, sinks, bias)
    else:
        y = _fused(state, op, node.inputs[0].dtype, q, keys, values, bias)
    return state.view(y, (-1, heads, value_size), before=(0, 2, 1, 3))


def write_indices(state: Lowering) -> Tensor:
    """i32 [S]: tokens in each row's slot before this step."""
    return state.feed("write_indices", "step", DType.I32, SEQUENCES)


def key_value_lengths(state: Lowering) -> Tensor:
    """i32 [S]: how many tokens of its slot the last query of each padded row sees."""
    return state.feed("key_value_lengths", "step", DType.I32, SEQUENCES)


def row_lengths(state: Lowering, of: str = STEP) -> Tensor:
    """i32 [S]: tokens of each row, of its source, or of each image, that are not padding."""
    name, rows = {
        STEP: ("row_lengths", SEQUENCES),
        SOURCE: ("source_row_lengths", SEQUENCES),
        IMAGE: ("image_row_lengths", IMAGES),
    }[of]
    return state.feed(name, "step", DType.I32, rows)


def scaled(state: Lowering, q: Tensor, scale: float, dtype: DType) -> Tensor:
    """Queries [tokens, heads, size] times the scale, of which the layer has none."""
    factor = state.network.scalar(scale, DType.F32, 3)
    return state.narrowed(state.elementwise("PROD", state.widened(q), factor), dtype)


def rows_of(state: Lowering, x: Tensor, like: Any, of: str = STEP) -> Tensor:
    """[tokens, heads, size] -> [S, heads, L, size]; of sources [S, heads, E, size], of images
    [images, heads, patches, size]."""
    network, heads, size = state.network, like.type.size(1), like.type.size(2)

    def sizes() -> Tensor:
        return state.joined([state.step_shape(of), network.indices(heads, size)], 0)

    shape = state.once(("rows", heads, size, of), sizes)
    return state.view(x, sizes=shape, after=(0, 2, 1, 3))


def updated(state: Lowering, cache: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """The cache after this step's rows were written: the same memory, so an output as well."""
    mode = state.network.enum("KVCacheMode", "LINEAR")
    layer = state.network.layer("kv_cache_update", cache, rows, indices, mode)
    present = state.network.output(layer)
    state.give(present, PRESENT + cache.name)
    return present


def _fused(
    state: Lowering,
    op: F.Attention,
    dtype: DType,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
) -> Tensor:
    network = state.network
    softmax = network.enum("AttentionNormalizationOp", "SOFTMAX")
    ragged, kind = network.flavour.features.ragged_attention, "NONE"
    if ragged:
        within = isinstance(op, F.ImageAttention)
        kind = "LOWER_RIGHT" if op.window is None and bias is None and not within else "NONE"
        causal = network.enum("CausalMaskKind", kind)
        layer = network.layer("attention_v2", q, keys, values, softmax, causal)
        network.set(layer, "key_value_lengths", key_value_lengths(state))
    else:
        layer = network.layer("attention", q, keys, values, softmax, False)
    # A mask beside a causal kind is refused, and only the log says so.
    if bias is not None:
        network.set(layer, "mask", _biased(state, bias, op, dtype))
    elif kind == "NONE":
        network.set(layer, "mask", seen(state, op))
    # Where no fused kernel takes these sizes (f32, heads above 256), products and a softmax do.
    network.set(layer, "decomposable", True)
    annotate(layer, scale=op.scale, window=op.window)
    return network.output(layer)


def seen(state: Lowering, op: F.Attention) -> Tensor:
    """bool [S, 1, L, capacity]: whether a query sees a place in its slot."""
    window, within = op.window, isinstance(op, F.ImageAttention)

    def make() -> Tensor:
        network = state.network
        at = _query_positions(state)
        places = np.arange(state.bounds.capacity, dtype=np.int32).reshape(1, 1, 1, -1)
        j = network.constant(places, DType.I32)
        last = _last_seen(state) if within else at
        not_later = state.unary("NOT", state.elementwise("GREATER", j, last))
        if window is None:
            return not_later
        oldest = state.elementwise("SUB", at, network.scalar(window, DType.I32, 4))
        return state.elementwise("AND", not_later, state.elementwise("GREATER", j, oldest))

    return state.once(("seen", window, within), make)


def _query_positions(state: Lowering) -> Tensor:
    """i32 [S, 1, L, 1]."""

    def make() -> Tensor:
        network = state.network
        return _by_query(state, network.add("cast", state.positions(), network.dtype(DType.I32)))

    return state.once("query positions", make)


def _last_seen(state: Lowering) -> Tensor:
    """i32 [S, 1, L, 1]: the last place that each token sees, of an image that image's last."""
    last = state.feed("last_seen", "step", DType.I32, SEQUENCES, TOKENS)
    return state.once("last seen", lambda: _by_query(state, last))


def _by_query(state: Lowering, x: Tensor) -> Tensor:
    """[S, L] -> [S, 1, L, 1]."""
    shape = state.joined([state.step_shape(), state.network.indices(1, 1)], 0)
    return state.view(x, sizes=shape, after=(0, 2, 1, 3))


def _biased(state: Lowering, bias: Tensor, op: F.Attention, dtype: DType) -> Tensor:
    """[S, heads, L, capacity] to be added to scores: the bias, and far less where unseen.

    In the type of the queries, as the layer wants it.
    """

    def make() -> Tensor:
        unseen = state.network.scalar(UNSEEN[dtype], DType.F32, 4)
        return state.narrowed(state.network.add("select", seen(state, op), bias, unseen), dtype)

    return state.once(("biased", id(bias), op.window, type(op)), make)


# Finite, so that a block of keys of which none is seen does not become NaN on its way.
UNSEEN = {DType.F16: -30000.0, DType.BF16: -1e30, DType.F32: -1e30}


def _distances(state: Lowering, slopes: tuple[float, ...]) -> Tensor:
    """f32 [S, heads, L, capacity]: slope of the head, times key's position less query's."""

    def make() -> Tensor:
        network = state.network
        at = state.widened(_query_positions(state))
        places = np.arange(state.bounds.capacity, dtype=np.float32).reshape(1, 1, 1, -1)
        distance = state.elementwise("SUB", network.constant(places, DType.F32), at)
        by_head = np.asarray(slopes, np.float32).reshape(1, -1, 1, 1)
        return state.elementwise("PROD", distance, network.constant(by_head, DType.F32))

    return state.once(("distances", slopes), make)


def _relative(state: Lowering, op: F.RelativeAttention, node: Node, table: Tensor) -> Tensor:
    """f32 [S, heads, L, capacity]: of the table [buckets, heads], what the bucket has that says how
    far behind its query a key lies."""

    def make() -> Tensor:
        network, capacity = state.network, state.bounds.capacity
        heads, buckets = node.inputs[0].type.size(1), node.inputs[-1].type.size(0)
        by_bucket = state.view(state.widened(table), (heads, buckets), before=(1, 0))
        bucket = op.bucket_of(np.arange(capacity), buckets).astype(np.int32)
        by_distance = network.add("gather", by_bucket, network.constant(bucket, DType.I32), 1)
        at = state.view(_query_positions(state), (0, -1, 1), before=(0, 2, 1, 3))
        places = network.constant(np.arange(capacity, dtype=np.int32).reshape(1, 1, -1), DType.I32)
        back = state.elementwise("SUB", at, places)
        back = state.elementwise("MAX", back, network.scalar(0, DType.I32, 3))
        found = network.add("gather", by_distance, back, 1)  # [heads, S, L, capacity]
        return state.view(found, before=(1, 0, 2, 3))

    return state.once(("relative", op.max_distance, id(table)), make)


def _written_out(
    state: Lowering,
    node: Node,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    sinks: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """In primitives: scores may become cap * tanh(scores / cap), or have sinks [heads] beside
    them, for neither of which the layer has a place."""
    op, network = node.op, state.network
    assert isinstance(op, F.Attention)
    heads, size = node.inputs[0].type.size(1), node.inputs[0].type.size(2)
    kv_heads, value_size = node.inputs[2].type.size(1), node.inputs[2].type.size(2)
    group, capacity = heads // kv_heads, state.bounds.capacity
    none, transposed = (network.enum("MatrixOperation", n) for n in ("NONE", "TRANSPOSE"))

    # Queries that share a head of keys: [S, kv heads, group, L, size] against [S, kv heads, 1, ...]
    q = _by_group(state, q, kv_heads, group, -1, size)
    keys = _by_group(state, keys, kv_heads, 1, capacity, size)
    values = _by_group(state, values, kv_heads, 1, capacity, value_size)
    scores = state.widened(network.add("matrix_multiply", q, none, keys, transposed))
    if op.soft_cap is not None:
        cap = network.scalar(op.soft_cap, DType.F32, 5)
        tanh = network.enum("ActivationType", "TANH")
        scores = network.add("activation", state.elementwise("DIV", scores, cap), tanh)
        scores = state.elementwise("PROD", scores, cap)
    if bias is not None:
        bias = _by_group(state, bias, kv_heads, group, -1, capacity)
        scores = state.elementwise("SUM", scores, bias)
    mask = state.once(
        ("seen by groups", op.window, type(op)),
        lambda: _by_group(state, seen(state, op), 1, 1, -1, capacity),
    )
    unseen = network.scalar(UNSEEN[DType.F32], DType.F32, 5)
    scores = network.add("select", mask, scores, unseen)
    if sinks is None:
        layer = network.layer("softmax", scores)
        network.set(layer, "axes", 1 << 4)
        weights = network.output(layer)
    else:
        sinks = state.view(state.widened(sinks), (1, kv_heads, group, 1, 1))
        weights = _softmax_beside(state, scores, sinks)
    weights = state.narrowed(weights, node.inputs[2].dtype)
    y = network.add("matrix_multiply", weights, none, values, none)
    return _by_group(state, y, heads, -1, value_size)


def _softmax_beside(state: Lowering, scores: Tensor, sinks: Tensor) -> Tensor:
    """exp(scores) over the sum of all of them and exp(sinks), along the last of five axes."""
    highest, total = (state.network.enum("ReduceOperation", n) for n in ("MAX", "SUM"))
    largest = state.network.add("reduce", scores, highest, 1 << 4, True)
    largest = state.elementwise("MAX", largest, sinks)
    raised = state.unary("EXP", state.elementwise("SUB", scores, largest))
    lost = state.unary("EXP", state.elementwise("SUB", sinks, largest))
    whole = state.network.add("reduce", raised, total, 1 << 4, True)
    return state.elementwise("DIV", raised, state.elementwise("SUM", whole, lost))


def _by_group(state: Lowering, x: Tensor, *tail: int) -> Tensor:
    """[S, ...] seen as [S, *tail]; one size may be -1."""
    network = state.network
    rows = state.once("S", lambda: network.add("slice", state.step_shape(), (0,), (1,), (1,)))
    sizes = state.once(("S", tail), lambda: state.joined([rows, network.indices(*tail)], 0))
    return state.view(x, sizes=sizes)
