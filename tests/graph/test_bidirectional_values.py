"""Attention within whole sequences equals attention written out for one pair at a time."""

from __future__ import annotations

import importlib.util
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddock.graph import Array, DType
from paddock.graph.ops import BidirectionalAttention, SequenceMean
from tests.graph.test_attention_values import shapes


def dense(op: BidirectionalAttention, q: Array, k: Array, v: Array, table: Array | None) -> Array:
    """One sequence, every token and head by itself, in f64."""
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    out = np.zeros((tokens, heads, v.shape[2]))
    for i in range(tokens):
        seen = [j for j in range(tokens) if op.window is None or abs(i - j) <= op.window]
        for h in range(heads):
            scores = np.array([op.scale * float(q[i, h] @ k[j, h // group]) for j in seen])
            if table is not None:
                scores += [table[op.bucket_of(np.array(j - i)), h] for j in seen]
            weights = np.exp(scores - scores.max())
            out[i, h] = weights / weights.sum() @ v[seen, h // group]
    return out


@settings(max_examples=100, deadline=None)
@given(
    shape=shapes(),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    window=st.none() | st.integers(0, 8),
    buckets=st.none() | st.sampled_from([4, 8, 32]),
    dtype=st.sampled_from([DType.F64, DType.F32, DType.BF16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_dense(
    shape: tuple[int, int, int, int],
    lengths: list[int],
    window: int | None,
    buckets: int | None,
    dtype: DType,
    seed: int,
) -> None:
    heads, kv_heads, size, value_size = shape
    random = np.random.default_rng(seed)

    def values(*axes: int) -> Array:
        return random.standard_normal(axes).astype(dtype.numpy)

    total = sum(lengths)
    q, k = values(total, heads, size), values(total, kv_heads, size)
    v, table = values(total, kv_heads, value_size), values(buckets or 1, heads)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    op = BidirectionalAttention(0.4, window, buckets, 20)
    out = op.compute(q, k, v, starts, *([table] if buckets else []))
    assert out.dtype == dtype.numpy
    tolerance = {DType.F64: 1e-12, DType.F32: 3e-6, DType.BF16: 1.5e-2}[dtype]
    for first, last in itertools.pairwise(starts):
        one, two, three = (x[first:last].astype(np.float64) for x in (q, k, v))
        exact = dense(op, one, two, three, table.astype(np.float64) if buckets else None)
        found = out[first:last].astype(np.float64)
        np.testing.assert_allclose(found, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed",
)
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 20), (16, 64)])
def test_buckets_are_those_of_t5_and_mpnet(buckets: int, reach: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
        from transformers.models.t5.modeling_t5 import T5Attention
    distances = np.arange(-300, 301)
    found = BidirectionalAttention(1.0, None, buckets, reach).bucket_of(distances)
    asked = torch.tensor(distances)
    t5 = T5Attention._relative_position_bucket(asked, True, buckets, reach)
    mpnet = MPNetEncoder.relative_position_bucket(asked, buckets, reach)
    np.testing.assert_array_equal(found, t5.numpy())
    np.testing.assert_array_equal(found, mpnet.numpy())


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.BF16])
def test_every_token_gets_the_mean_of_its_sequence(dtype: DType) -> None:
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(dtype.numpy)
    out = SequenceMean().compute(x, np.array([0, 4, 5, 9], np.int32))
    assert out.dtype == dtype.numpy
    wide = x.astype(np.float64)
    for first, last in ((0, 4), (4, 5), (5, 9)):
        wanted = np.repeat(wide[first:last].mean(0)[None], last - first, 0)
        found = out[first:last].astype(np.float64)
        np.testing.assert_allclose(found, wanted, rtol=1e-2 if dtype is DType.BF16 else 1e-5)
