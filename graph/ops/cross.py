"""Attention to another sequence: a decoder's tokens to what the encoder made of its source."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Tensor, TensorType


@dataclass(frozen=True)
class CrossAttention(Op):
    """Write the keys and values of this step's sources into blocks, then attend to whole sources.

    Operands: q [tokens, heads, size], k and v [source tokens, kv heads, size], two caches
    [blocks, block size, kv heads, size], and the step's `sequence_starts`, `source_starts`,
    `source_lengths`, `source_table`, `source_table_starts` (see
    `paddock.engines.protocol.StepInputs`). A sequence's source comes once, in its first step; it
    lies in blocks of its own, of any cache whose tokens have this shape: so a layer keeps its own
    tokens and its source in one. Vaswani et al. 2017, arxiv.org/abs/1706.03762, section 3.2.3.
    """

    scale: float

    has_effects: ClassVar[bool] = True  # it writes into the caches

    def infer(
        self,
        q: TensorType,
        k: TensorType,
        v: TensorType,
        key_cache: TensorType,
        value_cache: TensorType,
        sequence_starts: TensorType,
        source_starts: TensorType,
        source_lengths: TensorType,
        source_table: TensorType,
        source_table_starts: TensorType,
    ) -> TensorType:
        if not q.rank == k.rank == v.rank == 3 or q.shape[2] != k.shape[2]:
            raise GraphError(f"expected q, k, v [tokens, heads, size]: {q}, {k}, {v}")
        if not q.dtype.is_float or not q.dtype is k.dtype is v.dtype:
            raise GraphError(f"expected q, k, v in one type of floats: {q}, {k}, {v}")
        if k.shape[0] != v.shape[0]:
            raise GraphError(f"k and v are of different tokens: {k}, {v}")
        if k.shape[1] != v.shape[1] or q.size(1) % k.size(1):
            raise GraphError(f"{q.size(1)} heads do not share the {k.size(1)} of {k} and {v}")
        for name, cache, x in (("key", key_cache, k), ("value", value_cache, v)):
            if cache.rank != 4 or cache.shape[2:] != x.shape[1:]:
                raise GraphError(f"the {name} cache {cache} does not hold {x}")
        if key_cache.shape[:2] != value_cache.shape[:2]:
            raise GraphError(f"the caches differ in their blocks: {key_cache}, {value_cache}")
        starts = (sequence_starts, source_starts, source_table_starts)
        steps = (*starts, source_lengths, source_table)
        if any(t.rank != 1 or not t.dtype.is_index for t in steps):
            raise GraphError(f"expected integers along one axis: {', '.join(map(str, steps))}")
        if len({t.shape for t in starts}) > 1:
            raise GraphError(f"starts of different sequences: {', '.join(map(str, starts))}")
        return q.with_shape(q.shape[0], q.shape[1], v.shape[2])

    def compute(
        self,
        q: Array,
        k: Array,
        v: Array,
        key_cache: Array,
        value_cache: Array,
        sequence_starts: Array,
        source_starts: Array,
        source_lengths: Array,
        source_table: Array,
        source_table_starts: Array,
    ) -> Array:
        block_size = key_cache.shape[1]
        out = np.empty((*q.shape[:2], v.shape[2]), widen(q).dtype)
        for s, length in enumerate(source_lengths):
            blocks = source_table[source_table_starts[s] : source_table_starts[s + 1]]
            new = slice(source_starts[s], source_starts[s + 1])
            at = np.arange(new.stop - new.start)
            key_cache[blocks[at // block_size], at % block_size] = k[new]
            value_cache[blocks[at // block_size], at % block_size] = v[new]
            keys = widen(key_cache[blocks].reshape(-1, *k.shape[1:])[:length])
            values = widen(value_cache[blocks].reshape(-1, *v.shape[1:])[:length])
            tokens = slice(sequence_starts[s], sequence_starts[s + 1])
            out[tokens] = self._attend(widen(q[tokens]), keys, values)
        return out.astype(q.dtype)

    def _attend(self, q: Array, k: Array, v: Array) -> Array:
        """q: [new, heads, size]; k, v: [source, kv heads, size]."""
        new, heads, size = q.shape
        kv_heads = k.shape[1]
        grouped = q.reshape(new, kv_heads, heads // kv_heads, size).transpose(1, 2, 0, 3)
        scores = grouped @ k.transpose(1, 2, 0)[:, None] * q.dtype.type(self.scale)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = scores / scores.sum(axis=-1, keepdims=True)
        result = weights @ v.transpose(1, 0, 2)[:, None]
        return result.transpose(2, 0, 1, 3).reshape(new, heads, v.shape[2])


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    caches: tuple[Tensor, Tensor],
    sequence_starts: Tensor,
    source_starts: Tensor,
    source_lengths: Tensor,
    source_table: Tensor,
    source_table_starts: Tensor,
    scale: float,
) -> Tensor:
    """q: [tokens, heads, size]; k, v: [source tokens, kv heads, size] -> as q."""
    steps = (sequence_starts, source_starts, source_lengths, source_table, source_table_starts)
    return CrossAttention(scale)(q, k, v, *caches, *steps)
