"""Attention over scattered blocks, in chunks, equals attention written out densely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddock.graph import Array, DType
from paddock.graph.ops import Attention, SinkAttention
from tests.graph.dense_attention import dense


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """heads, kv heads, key size, value size"""
    kv_heads = draw(st.integers(1, 3))
    return kv_heads * draw(st.integers(1, 3)), kv_heads, *draw(st.tuples(*[st.integers(1, 9)] * 2))


@settings(max_examples=150, deadline=None)
@given(
    shape=shapes(),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    block_size=st.integers(1, 7),
    window=st.none() | st.integers(1, 8),
    soft_cap=st.none() | st.floats(0.5, 20),
    alibi=st.none() | st.lists(st.floats(0, 1), min_size=9, max_size=9),
    sink=st.none() | st.floats(-3, 3),
    scale=st.floats(0.05, 1.5),
    dtype=st.sampled_from([DType.F64, DType.F32, DType.F16, DType.BF16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_dense(
    shape: tuple[int, int, int, int],
    lengths: list[int],
    block_size: int,
    window: int | None,
    soft_cap: float | None,
    alibi: list[float] | None,
    sink: float | None,
    scale: float,
    dtype: DType,
    seed: int,
) -> None:
    heads, kv_heads, size, value_size = shape
    random = np.random.default_rng(seed)

    def values(*axes: int) -> Array:
        return random.standard_normal(axes).astype(dtype.numpy)

    kind = Attention if sink is None else SinkAttention
    op = kind(scale, window, soft_cap, None if alibi is None else tuple(alibi[:heads]))
    sinks = [] if sink is None else [(sink + values(heads)).astype(dtype.numpy)]
    qs = [values(n, heads, size) for n in lengths]
    ks = [values(n, kv_heads, size) for n in lengths]
    vs = [values(n, kv_heads, value_size) for n in lengths]

    # Blocks in random order out of a pool in which nothing but NaN has been.
    need = [-(-n // block_size) for n in lengths]
    pool = random.permutation(sum(need) + 2)
    spare, owned = pool[:2], np.split(pool[2:], np.cumsum(need)[:-1])
    key_cache = np.full((len(pool), block_size, kv_heads, size), np.nan, dtype.numpy)
    value_cache = np.full((len(pool), block_size, kv_heads, value_size), np.nan, dtype.numpy)

    out = [np.zeros((n, heads, value_size), dtype.numpy) for n in lengths]
    done = [0] * len(lengths)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        some = [s for s, n in enumerate(lengths) if done[s] < n and random.random() < 0.7]
        random.shuffle(some)
        if not some:
            continue
        new = {s: int(random.integers(1, lengths[s] - done[s] + 1)) for s in some}
        taken = {s: owned[s][: -(-(done[s] + new[s]) // block_size)] for s in some}
        spans = {s: slice(done[s], done[s] + new[s]) for s in some}
        untouched = np.setdiff1d(pool, np.concatenate([taken[s] for s in some]))
        before = key_cache[untouched].tobytes(), value_cache[untouched].tobytes()
        operands = [np.concatenate([a[s][spans[s]] for s in some]) for a in (qs, ks, vs)]
        operands += [key_cache, value_cache]
        operands += [
            np.cumsum([0, *new.values()]).astype(np.int32),
            np.array([done[s] for s in some], np.int32),
            np.concatenate([taken[s] for s in some]).astype(np.int32),
            np.cumsum([0, *map(len, taken.values())]).astype(np.int32),
        ]
        result = op.compute(*operands, *sinks)
        assert result.dtype == dtype.numpy
        start = 0
        for s in some:
            out[s][spans[s]] = result[start : start + new[s]]
            start, done[s] = start + new[s], done[s] + new[s]
        assert start == len(result)
        assert (key_cache[untouched].tobytes(), value_cache[untouched].tobytes()) == before
    assert np.isnan(key_cache[spare].astype(np.float64)).all()

    tolerance = {DType.F64: 1e-12, DType.F32: 3e-6, DType.F16: 2e-3, DType.BF16: 1.5e-2}[dtype]
    for s in range(len(lengths)):
        qkv = [a[s].astype(np.float64) for a in (qs, ks, vs)]
        exact = dense(op, *qkv, *(a.astype(np.float64) for a in sinks))
        np.testing.assert_allclose(out[s].astype(np.float64), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_counts_the_token_itself(window: int) -> None:
    """All keys alike, so that the output is the mean of the values that are seen."""
    tokens = 9
    q = k = np.zeros((tokens, 1, 1), np.float32)
    v = np.arange(tokens, dtype=np.float32).reshape(tokens, 1, 1)
    caches = [np.zeros((1, 16, 1, 1), np.float32) for _ in range(2)]
    step = [np.array([0, tokens]), np.array([0]), np.array([0]), np.array([0, 1])]
    operands = [q, k, v, *caches, *step]
    out = Attention(1.0, window).compute(*operands)
    for i in range(tokens):
        seen = range(max(0, i - window + 1), i + 1)
        assert out[i, 0, 0] == pytest.approx(sum(seen) / len(seen))


def test_a_sequence_without_new_tokens_changes_nothing() -> None:
    q = k = v = np.ones((1, 1, 2), np.float32)
    caches = [np.zeros((2, 4, 1, 2), np.float32) for _ in range(2)]
    step = [np.array([0, 0, 1]), np.array([3, 0]), np.array([0, 1]), np.array([0, 1, 2])]
    operands = [q, k, v, *caches, *step]
    out = Attention(1.0).compute(*operands)
    np.testing.assert_array_equal(out, v)
    assert not caches[0][0].any()
