"""Attention over the paged cache."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.ops.relative import distance_bucket
from paddock.graph.tensor import Tensor, TensorType


@dataclass(frozen=True)
class Attention(Op):
    """Write this step's keys and values into their cache blocks, then attend causally over all.

    Operands: q [tokens, heads, size], k and v [tokens, kv heads, size], the two caches
    [blocks, block size, kv heads, size], and the step's `sequence_starts`, `past_lengths`,
    `block_table`, `block_starts` (see `paddock.engines.protocol.StepInputs`). A token at position
    i of its sequence sees the positions j with i - window < j <= i. Vaswani et al. 2017,
    arxiv.org/abs/1706.03762; grouped queries: arxiv.org/abs/2305.13245; `soft_cap`, by which
    scores s become cap * tanh(s / cap): Gemma 2, arxiv.org/abs/2408.00118; `alibi`, a slope for
    each head by which a score falls for each position that its key lies behind: Press et al. 2021,
    arxiv.org/abs/2108.12409.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    alibi: tuple[float, ...] | None = None

    has_effects: ClassVar[bool] = True  # it writes into the caches

    def infer(
        self,
        q: TensorType,
        k: TensorType,
        v: TensorType,
        key_cache: TensorType,
        value_cache: TensorType,
        sequence_starts: TensorType,
        past_lengths: TensorType,
        block_table: TensorType,
        block_starts: TensorType,
    ) -> TensorType:
        if not q.rank == k.rank == v.rank == 3 or q.shape[2] != k.shape[2]:
            raise GraphError(f"expected q, k, v [tokens, heads, size]: {q}, {k}, {v}")
        if not q.dtype.is_float or not q.dtype is k.dtype is v.dtype:
            raise GraphError(f"expected q, k, v in one type of floats: {q}, {k}, {v}")
        if not q.shape[0] == k.shape[0] == v.shape[0]:
            raise GraphError(f"q, k, v are of different tokens: {q}, {k}, {v}")
        if k.shape[1] != v.shape[1] or q.size(1) % k.size(1):
            raise GraphError(f"{q.size(1)} heads do not share the {k.size(1)} of {k} and {v}")
        for name, cache, x in (("key", key_cache, k), ("value", value_cache, v)):
            if cache.rank != 4 or cache.shape[2:] != x.shape[1:]:
                raise GraphError(f"the {name} cache {cache} does not hold {x}")
        if key_cache.shape[:2] != value_cache.shape[:2]:
            raise GraphError(f"the caches differ in their blocks: {key_cache}, {value_cache}")
        steps = (sequence_starts, past_lengths, block_table, block_starts)
        if any(t.rank != 1 or not t.dtype.is_index for t in steps):
            raise GraphError(f"expected integers along one axis: {', '.join(map(str, steps))}")
        if sequence_starts.shape != block_starts.shape:
            raise GraphError(f"starts of different sequences: {sequence_starts}, {block_starts}")
        if self.window is not None and self.window < 1:
            raise GraphError(f"a window of {self.window} tokens sees nothing")
        if self.soft_cap is not None and not 0 < self.soft_cap < float("inf"):
            raise GraphError(f"soft_cap is {self.soft_cap}, expected a finite number above 0")
        if self.alibi is not None and (
            len(self.alibi) != q.size(1) or not all(map(math.isfinite, self.alibi))
        ):
            raise GraphError(f"alibi is {self.alibi}, expected {q.size(1)} finite slopes")
        return q.with_shape(q.shape[0], q.shape[1], v.shape[2])

    def compute(
        self,
        q: Array,
        k: Array,
        v: Array,
        key_cache: Array,
        value_cache: Array,
        sequence_starts: Array,
        past_lengths: Array,
        block_table: Array,
        block_starts: Array,
        *more: Array,
    ) -> Array:
        block_size = key_cache.shape[1]
        out = np.empty((*q.shape[:2], v.shape[2]), widen(q).dtype)
        for s, past in enumerate(past_lengths):
            tokens = slice(sequence_starts[s], sequence_starts[s + 1])
            blocks = block_table[block_starts[s] : block_starts[s + 1]]
            new = tokens.stop - tokens.start
            at = np.arange(past, past + new)
            key_cache[blocks[at // block_size], at % block_size] = k[tokens]
            value_cache[blocks[at // block_size], at % block_size] = v[tokens]
            keys = widen(key_cache[blocks].reshape(-1, *k.shape[1:])[: past + new])
            values = widen(value_cache[blocks].reshape(-1, *v.shape[1:])[: past + new])
            beside = self._beside(*map(widen, more), tokens=tokens, at=at, count=len(keys))
            out[tokens] = self._attend(widen(q[tokens]), keys, values, at, **beside)
        return out.astype(q.dtype)

    def _beside(self, *more: Array, tokens: slice, at: Array, count: int) -> dict[str, Array]:
        """What further operands are to a sequence's new tokens, at positions `at`, which see up to
        `count` keys: arguments of `_attend`."""
        return {}

    def _attend(
        self,
        q: Array,
        k: Array,
        v: Array,
        at: Array,
        sinks: Array | None = None,
        bias: Array | None = None,
        last: Array | None = None,
    ) -> Array:
        """q: [new, heads, size] at positions `at`; k, v: [all, kv heads, size]; sinks: [heads];
        bias: [heads, new, all]; last: the last position that each query sees, if not its own."""
        new, heads, size = q.shape
        kv_heads = k.shape[1]
        grouped = q.reshape(new, kv_heads, heads // kv_heads, size).transpose(1, 2, 0, 3)
        scores = grouped @ k.transpose(1, 2, 0)[:, None] * q.dtype.type(self.scale)
        if self.soft_cap is not None:
            cap = q.dtype.type(self.soft_cap)
            scores = cap * np.tanh(scores / cap)
        j = np.arange(len(k))
        if self.alibi is not None:
            slopes = np.asarray(self.alibi, q.dtype).reshape(kv_heads, -1, 1, 1)
            scores = scores + slopes * (j - at[:, None])
        if bias is not None:
            scores = scores + bias.reshape(scores.shape)
        seen = j <= (at if last is None else last)[:, None]
        if self.window is not None:
            seen &= j > at[:, None] - self.window
        scores = np.where(seen, scores, -np.inf)
        largest = scores.max(axis=-1, keepdims=True)
        if sinks is None:
            scores = np.exp(scores - largest)
            weights = scores / scores.sum(axis=-1, keepdims=True)
        else:
            lost = sinks.astype(q.dtype).reshape(kv_heads, -1, 1, 1)
            largest = np.maximum(largest, lost)
            scores = np.exp(scores - largest)
            weights = scores / (scores.sum(axis=-1, keepdims=True) + np.exp(lost - largest))
        result = weights @ v.transpose(1, 0, 2)[:, None]
        return result.transpose(2, 0, 1, 3).reshape(new, heads, v.shape[2])


@dataclass(frozen=True)
class SinkAttention(Attention):
    """Attention whose weights add up to less than 1.

    The last operand [heads] is a score beside those of the keys, of something whose value is 0:
    Xiao et al. 2023, arxiv.org/abs/2309.17453, as gpt-oss learns it, arxiv.org/abs/2508.10925.
    """

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 10:
            raise GraphError(f"expected ten operands, the last of them sinks: {len(operands)}")
        *others, sinks = operands
        if sinks.shape != (others[0].size(1),) or not sinks.dtype.is_float:
            raise GraphError(f"expected sinks [{others[0].size(1)}] in floats: {sinks}")
        return super().infer(*others)

    def _beside(self, *more: Array, tokens: slice, at: Array, count: int) -> dict[str, Array]:
        (sinks,) = more
        return {"sinks": sinks}


@dataclass(frozen=True)
class RelativeAttention(Attention):
    """Attention whose scores get a bias by how far behind its query a key lies.

    The last operand is a table [buckets, heads]; `distance_bucket` says which row a distance has:
    Raffel et al. 2019 (T5), arxiv.org/abs/1910.10683, section 2.1.
    """

    max_distance: int = 128

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 10:
            raise GraphError(f"expected ten operands, the last a table of biases: {len(operands)}")
        *others, table = operands
        heads = others[0].size(1)
        if table.rank != 2 or table.size(1) != heads or not table.dtype.is_float:
            raise GraphError(f"expected biases [buckets, {heads}] in floats: {table}")
        if not 2 <= table.size(0) < 2 * self.max_distance:
            raise GraphError(
                f"{table.size(0)} buckets do not go with a max_distance of {self.max_distance}:"
                " expected 2 at least, and a larger distance than half of them"
            )
        return super().infer(*others)

    def bucket_of(self, distances: Array, buckets: int) -> Array:
        """The row of the table for each distance from a query back to its key."""
        return distance_bucket(distances, buckets, self.max_distance)

    def _beside(self, *more: Array, tokens: slice, at: Array, count: int) -> dict[str, Array]:
        (table,) = more
        back = np.maximum(at[:, None] - np.arange(count), 0)
        return {"bias": table[self.bucket_of(back, len(table))].transpose(2, 0, 1)}


@dataclass(frozen=True)
class ImageAttention(Attention):
    """Attention in which the tokens of an image see all of it, and not only those before them.

    The last operand [tokens] is no less than 0 for tokens of images; those of an image are
    neighbours, none of two images are, and the last of an image is in the step that has its first.
    A window is no shorter than an image: what it would cut off, engines do not agree about.
    Gemma 3, arxiv.org/abs/2503.19786, section 2.1.
    """

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 10:
            raise GraphError(f"expected ten operands, the last for each token: {len(operands)}")
        *others, rows = operands
        if rows.shape != others[0].shape[:1] or not rows.dtype.is_index:
            raise GraphError(f"expected integers for each token of {others[0]}: {rows}")
        return super().infer(*others)

    def _beside(self, *more: Array, tokens: slice, at: Array, count: int) -> dict[str, Array]:
        rows, ends = more[0][tokens], at.copy()
        for i in range(len(at) - 2, -1, -1):
            if rows[i] >= 0 and rows[i + 1] >= 0:
                ends[i] = ends[i + 1]
        return {"last": ends}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    caches: tuple[Tensor, Tensor],
    sequence_starts: Tensor,
    past_lengths: Tensor,
    block_table: Tensor,
    block_starts: Tensor,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi: tuple[float, ...] | None = None,
    sinks: Tensor | None = None,
    biases: Tensor | None = None,
    max_distance: int = 128,
    image_rows: Tensor | None = None,
) -> Tensor:
    """q: [tokens, heads, size]; k, v: [tokens, kv heads, size] -> [tokens, heads, size].

    `biases`: [buckets, heads], by how far back a key lies; `image_rows`: [tokens], no less than 0
    for tokens that see all of the image that they are of.
    """
    steps = (sequence_starts, past_lengths, block_table, block_starts)
    if image_rows is not None:
        if sinks is not None or biases is not None:
            raise GraphError("attention within images has neither sinks nor biases by distance")
        images = ImageAttention(scale, window, soft_cap, alibi)
        return images(q, k, v, *caches, *steps, image_rows)
    if biases is not None:
        if sinks is not None:
            raise GraphError("attention has sinks or biases by distance, not both")
        relative = RelativeAttention(scale, window, soft_cap, alibi, max_distance)
        return relative(q, k, v, *caches, *steps, biases)
    if sinks is not None:
        return SinkAttention(scale, window, soft_cap, alibi)(q, k, v, *caches, *steps, sinks)
    return Attention(scale, window, soft_cap, alibi)(q, k, v, *caches, *steps)
