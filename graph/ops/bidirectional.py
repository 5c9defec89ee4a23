"""Attention within whole sequences, without a cache: what encoders are made of."""

import itertools
from dataclasses import dataclass

import numpy as np

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.ops.relative import distance_bucket
from paddock.graph.tensor import Tensor, TensorType


@dataclass(frozen=True)
class BidirectionalAttention(Op):
    """Every token of a sequence attends to all of it: Devlin et al. 2018, arxiv.org/abs/1810.04805.

    Operands: q [tokens, heads, size], k and v [tokens, kv heads, size], `sequence_starts`
    [sequences + 1], and, where `buckets` is set, a table [buckets, heads] of biases by relative
    position. Sequences are whole: nothing was cached before, and nothing is after.

    `window`: a token sees those at most so many before and behind it (ModernBERT's local layers,
    arxiv.org/abs/2412.13663). `buckets`: the score of a key j as seen by i gets the bias of the
    bucket of j - i; near distances have one each, farther ones share, in logarithmic widths, and
    from `max_distance` on all are in the last (T5, arxiv.org/abs/1910.10683, section 2.1).
    """

    scale: float
    window: int | None = None
    buckets: int | None = None
    max_distance: int = 128

    def infer(
        self,
        q: TensorType,
        k: TensorType,
        v: TensorType,
        sequence_starts: TensorType,
        *table: TensorType,
    ) -> TensorType:
        if not q.rank == k.rank == v.rank == 3 or q.shape[2] != k.shape[2]:
            raise GraphError(f"expected q, k, v [tokens, heads, size]: {q}, {k}, {v}")
        if not q.dtype.is_float or not q.dtype is k.dtype is v.dtype:
            raise GraphError(f"expected q, k, v in one type of floats: {q}, {k}, {v}")
        if not q.shape[0] == k.shape[0] == v.shape[0]:
            raise GraphError(f"q, k, v are of different tokens: {q}, {k}, {v}")
        if k.shape[1] != v.shape[1] or q.size(1) % k.size(1):
            raise GraphError(f"{q.size(1)} heads do not share the {k.size(1)} of {k} and {v}")
        if sequence_starts.rank != 1 or not sequence_starts.dtype.is_index:
            raise GraphError(f"expected integers along one axis: {sequence_starts}")
        if self.window is not None and self.window < 0:
            raise GraphError(f"window is {self.window}, expected 0 tokens on each side at least")
        expected = [] if self.buckets is None else [(self.buckets, q.size(1))]
        if [t.shape for t in table] != expected or not all(t.dtype.is_float for t in table):
            found = ", ".join(map(str, table)) or "none"
            raise GraphError(f"expected a table of biases {expected or 'nowhere'}, found {found}")
        if self.buckets is not None and (self.buckets < 4 or self.buckets % 2):
            raise GraphError(f"buckets is {self.buckets}, expected an even number from 4 up")
        if self.buckets is not None and self.max_distance <= self.buckets // 4:
            raise GraphError(
                f"max_distance is {self.max_distance}, no more than the {self.buckets // 4} with"
                " buckets of their own"
            )
        return q.with_shape(q.shape[0], q.shape[1], v.shape[2])

    def compute(self, q: Array, k: Array, v: Array, sequence_starts: Array, *table: Array) -> Array:
        out = np.empty((*q.shape[:2], v.shape[2]), widen(q).dtype)
        for start, stop in itertools.pairwise(sequence_starts):
            if start == stop:  # an encoder-decoder's source that was encoded before
                continue
            at = slice(start, stop)
            bias = self._bias(stop - start, out.dtype, *table)
            out[at] = self._attend(widen(q[at]), widen(k[at]), widen(v[at]), bias)
        return out.astype(q.dtype)

    def bucket_of(self, distances: Array) -> Array:
        """The bucket of each distance j - i: those behind a token in the upper half."""
        assert self.buckets is not None
        half = self.buckets // 2
        bucket = distance_bucket(np.abs(distances), half, self.max_distance)
        return bucket + np.where(distances > 0, half, 0)

    def _bias(self, length: int, dtype: np.dtype[np.generic], *table: Array) -> Array:
        """What is added to scores: [heads or 1, length, length]."""
        at = np.arange(length)
        distances = at - at[:, None]
        bias = np.zeros((1, length, length), dtype)
        if table:
            bias = widen(table[0])[self.bucket_of(distances)].transpose(2, 0, 1).astype(dtype)
        if self.window is not None:
            bias = np.where(np.abs(distances) <= self.window, bias, -np.inf)
        return bias

    def _attend(self, q: Array, k: Array, v: Array, bias: Array) -> Array:
        """One sequence: q [length, heads, size]; k, v [length, kv heads, size]."""
        length, heads, size = q.shape
        kv_heads = k.shape[1]
        grouped = q.reshape(length, kv_heads, heads // kv_heads, size).transpose(1, 2, 0, 3)
        scores = grouped @ k.transpose(1, 2, 0)[:, None] * q.dtype.type(self.scale)
        scores = scores.reshape(heads, length, length) + bias
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = scores / scores.sum(axis=-1, keepdims=True)
        weights = weights.reshape(kv_heads, heads // kv_heads, length, length)
        result = weights @ v.transpose(1, 0, 2)[:, None]
        return result.transpose(2, 0, 1, 3).reshape(length, heads, v.shape[2])


def bidirectional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sequence_starts: Tensor,
    scale: float,
    window: int | None = None,
    biases: Tensor | None = None,
    max_distance: int = 128,
) -> Tensor:
    """q: [tokens, heads, size]; k, v: [tokens, kv heads, size] -> [tokens, heads, size].

    `biases`: [buckets, heads], by relative position.
    """
    if biases is None:
        return BidirectionalAttention(scale, window)(q, k, v, sequence_starts)
    op = BidirectionalAttention(scale, window, biases.type.size(0), max_distance)
    return op(q, k, v, sequence_starts, biases)
