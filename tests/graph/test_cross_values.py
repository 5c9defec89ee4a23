"""A decoder's attention, to a source and with biases by distance, equals what is written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddock.graph import Array, DType, GraphError
from paddock.graph.ops import CrossAttention, RelativeAttention
from tests.graph.test_attention_values import shapes

TOLERANCE = {DType.F64: 1e-12, DType.F32: 3e-6, DType.BF16: 1.5e-2}


def dense(q: Array, k: Array, v: Array, scale: float, bias: Array) -> Array:
    """Every token and head by itself, in f64; bias [heads, queries, keys], -inf where unseen."""
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    out = np.zeros((tokens, heads, v.shape[2]))
    for i in range(tokens):
        for h in range(heads):
            scores = np.array([scale * float(q[i, h] @ key[h // group]) for key in k]) + bias[h, i]
            weights = np.exp(scores - scores.max())
            out[i, h] = weights / weights.sum() @ v[:, h // group]
    return out


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes(),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    dtype=st.sampled_from([DType.F64, DType.F32, DType.BF16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_source_is_attended_to_when_it_comes_and_later(
    shape: tuple[int, int, int, int], lengths: list[int], dtype: DType, seed: int
) -> None:
    """Two steps: the sources of some sequences come in the first, those of others in the second."""
    heads, kv_heads, size, value_size = shape
    random = np.random.default_rng(seed)
    count, block = len(lengths), 4

    def values(*axes: int) -> Array:
        return random.standard_normal(axes).astype(dtype.numpy)

    keys = [values(n, kv_heads, size) for n in lengths]
    wanted = [values(n, kv_heads, value_size) for n in lengths]
    needed = [-(-n // block) for n in lengths]
    blocks = np.split(random.permutation(sum(needed) + 2)[: sum(needed)], np.cumsum(needed)[:-1])
    caches = (
        np.full((sum(needed) + 2, block, kv_heads, size), np.nan, dtype.numpy),
        np.full((sum(needed) + 2, block, kv_heads, value_size), np.nan, dtype.numpy),
    )
    first = [s for s in range(count) if random.random() < 0.5] or [0]
    op = CrossAttention(0.4)
    for taking, coming in ((first, first), (range(count), set(range(count)) - set(first))):
        tokens = [int(random.integers(1, 4)) for _ in taking]
        q = values(sum(tokens), heads, size)
        new = [lengths[s] if s in coming else 0 for s in taking]
        none = [values(0, kv_heads, size)]
        out = op.compute(
            q,
            np.concatenate([keys[s] for s in taking if s in coming] or none),
            np.concatenate(
                [wanted[s] for s in taking if s in coming] or [values(0, kv_heads, value_size)]
            ),
            *caches,
            np.cumsum([0, *tokens]).astype(np.int32),
            np.cumsum([0, *new]).astype(np.int32),
            np.array([lengths[s] for s in taking], np.int32),
            np.concatenate([blocks[s] for s in taking]).astype(np.int32),
            np.cumsum([0, *(needed[s] for s in taking)]).astype(np.int32),
        )
        assert out.dtype == dtype.numpy
        ends = np.cumsum(tokens)[:-1]
        for s, mine, found in zip(taking, np.split(q, ends), np.split(out, ends), strict=True):
            q64, k64, v64 = (x.astype(np.float64) for x in (mine, keys[s], wanted[s]))
            exact = dense(q64, k64, v64, 0.4, np.zeros((heads, len(q64), len(k64))))
            tolerance = TOLERANCE[dtype]
            np.testing.assert_allclose(
                found.astype(np.float64), exact, rtol=tolerance, atol=tolerance
            )


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes(),
    length=st.integers(1, 40),
    buckets=st.sampled_from([2, 4, 8, 32]),
    dtype=st.sampled_from([DType.F64, DType.F32, DType.BF16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_biases_go_by_the_distance_to_a_key(
    shape: tuple[int, int, int, int], length: int, buckets: int, dtype: DType, seed: int
) -> None:
    heads, kv_heads, size, value_size = shape
    random = np.random.default_rng(seed)

    def values(*axes: int) -> Array:
        return random.standard_normal(axes).astype(dtype.numpy)

    q, k, v = (
        values(length, heads, size),
        values(length, kv_heads, size),
        values(length, kv_heads, value_size),
    )
    table = values(buckets, heads)
    out = RelativeAttention(0.4, max_distance=20).compute(
        q,
        k,
        v,
        np.zeros((1, length, kv_heads, size), dtype.numpy),
        np.zeros((1, length, kv_heads, value_size), dtype.numpy),
        np.array([0, length], np.int32),
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        np.array([0, 1], np.int32),
        table,
    )
    bias = np.full((heads, length, length), -np.inf)
    for i in range(length):
        for j in range(i + 1):
            bias[:, i, j] = table[bucket(i - j, buckets, 20)]
    q64, k64, v64 = (x.astype(np.float64) for x in (q, k, v))
    exact = dense(q64, k64, v64, 0.4, bias)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(out.astype(np.float64), exact, rtol=tolerance, atol=tolerance)


def bucket(distance: int, buckets: int, most: int) -> int:
    """By searching: the first half of the buckets are of one distance each, the others grow."""
    half = buckets // 2
    if distance < half:
        return distance
    edges = [
        0.999999 * half * (most / half) ** (i / (buckets - half)) for i in range(buckets - half)
    ]
    return half - 1 + sum(distance >= edge for edge in edges)


def test_buckets_are_those_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    torch = pytest.importorskip("torch")
    for buckets, most in ((32, 128), (8, 20), (4, 20)):
        theirs = modeling.T5Attention._relative_position_bucket(
            -torch.arange(200)[None], bidirectional=False, num_buckets=buckets, max_distance=most
        )
        ours = RelativeAttention(1.0, max_distance=most).bucket_of(np.arange(200), buckets)
        np.testing.assert_array_equal(ours, theirs[0])


def test_sinks_and_biases_exclude_each_other() -> None:
    from paddock.graph import Graph, use_graph
    from paddock.graph import ops as F

    with use_graph(Graph()):
        x = F.input_tensor("x", DType.F32, 2)
        with pytest.raises(GraphError, match="sinks or biases by distance, not both"):
            F.attention(
                x,
                x,
                x,
                caches=(x, x),
                sequence_starts=x,
                past_lengths=x,
                block_table=x,
                block_starts=x,
                scale=1.0,
                sinks=x,
                biases=x,
            )
