"""Attention in standard operations, where OpenVINO's own kernel lacks something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paddock.engines import openvino, reference
from paddock.engines.openvino.paged_attention import takes
from paddock.engines.openvino.portable_attention import padded
from paddock.engines.protocol import BuildError, Session, StepInputs
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph import ops as F
from paddock.graph.tensor import BLOCK_SIZE, BLOCKS
from paddock.layers import Step
from tests.engines.lowered import Held
from tests.models.play import chunks, decode, play, relative_error, together, whole

VOCAB = 50
LENGTHS = (75, 33, 6)
SLOPES = (0.5, 0.25, 0.11, 0.03, 0.7, 0.4, 0.2, 0.1)


def attention_graph(
    heads: int,
    kv_heads: int,
    size: int,
    value_size: int,
    dtype: DType = DType.F32,
    *,
    sinks: bool = False,
    **options: Any,
) -> tuple[Graph, dict[str, Array]]:
    """Queries, keys and values looked up by token, so that a session can run on token ids."""
    widths = {"q": heads * size, "k": kv_heads * size, "v": kv_heads * value_size}
    widths["head"] = heads * value_size
    random = np.random.default_rng([heads, kv_heads, size, value_size])
    arrays = {
        name: (2 * random.standard_normal((VOCAB, width))).astype(dtype.numpy)
        for name, width in widths.items()
    }
    arrays["sinks"] = (3 * random.standard_normal(heads)).astype(dtype.numpy)
    with use_graph(Graph(dtype)) as graph:
        step = Step.inputs(128)

        def rows(name: str, heads: int, size: int) -> Tensor:
            table: Tensor = F.Weight(name, dtype, (VOCAB, heads * size))()
            return F.reshape(F.gather(table, step.token_ids), heads, size)

        def cache(name: str, size: int) -> Tensor:
            tensor: Tensor = F.CacheBlocks(name, dtype, (BLOCKS, BLOCK_SIZE, kv_heads, size))()
            return tensor

        y = F.attention(
            rows("q", heads, size),
            rows("k", kv_heads, size),
            rows("v", kv_heads, value_size),
            caches=(cache("keys", size), cache("values", value_size)),
            sequence_starts=step.sequence_starts,
            past_lengths=step.past_lengths,
            block_table=step.block_table,
            block_starts=step.block_starts,
            sinks=F.Weight("sinks", dtype, (heads,))() if sinks else None,
            **options,
        )
        y = F.gather(F.reshape(y, heads * value_size), step.logit_rows)
        head: Tensor = F.Weight("head", dtype, (VOCAB, heads * value_size))()
        graph.outputs = (F.cast(F.linear(y, head), DType.F32),)
    return graph, arrays


def sessions(
    heads: int,
    kv_heads: int,
    size: int,
    value_size: int,
    dtype: DType = DType.F32,
    cache: str = "auto",
    **options: Any,
) -> tuple[Session, Session]:
    """OpenVINO's and the reference's."""
    graph, arrays = attention_graph(heads, kv_heads, size, value_size, dtype, **options)
    settings = {"cache_dtype": cache, "threads": 1}
    ours = openvino.build(graph, settings).open(Held(arrays), settings)
    return ours, reference.build(graph, {}).open(Held(arrays), {"block_size": 32})


def worst(pair: tuple[Session, Session]) -> float:
    """The largest error over plans that mix prompts, chunks and single tokens."""
    random = np.random.default_rng(1)
    ids = [random.integers(0, VOCAB, n) for n in LENGTHS]
    truth = play(pair[1], ids, whole(LENGTHS), random)
    plans = (together(LENGTHS), chunks(LENGTHS, random), decode(LENGTHS, 30))
    return max(relative_error(play(pair[0], ids, plan, random), truth) for plan in plans)


def drawn(seed: int) -> tuple[tuple[int, int, int, int], dict[str, Any]]:
    """Sizes and options; a soft cap always, or the native kernel would take it."""
    random = np.random.default_rng(seed)
    kv_heads = int(random.choice([1, 2, 3]))
    heads = kv_heads * int(random.choice([1, 2]))
    options = {
        "scale": float(random.uniform(0.1, 0.6)),
        "soft_cap": float(random.uniform(1, 20)),
        "window": [None, 1, 5, 32, 40][random.integers(5)],
        "alibi": SLOPES[:heads] if random.integers(2) else None,
    }
    size, value_size = (int(n) for n in random.choice([5, 8, 16, 24], 2))
    return (heads, kv_heads, size, value_size), options


@pytest.mark.parametrize("seed", range(8))
def test_it_computes_what_the_definition_says(seed: int) -> None:
    sizes, options = drawn(seed)
    assert worst(sessions(*sizes, **options)) < 1e-5


def test_the_drawn_cases_differ() -> None:
    """Every option is on in some and off in others."""
    options = [drawn(seed)[1] for seed in range(8)]
    for name in ("window", "alibi"):
        assert 0 < sum(o[name] is None for o in options) < 8
    assert len({drawn(seed)[0] for seed in range(8)}) > 5


@pytest.mark.parametrize(
    ("dtype", "cache", "bound"),
    [(DType.F32, "f16", 2e-3), (DType.BF16, "auto", 0.03)],
)
def test_smaller_caches(dtype: DType, cache: str, bound: float) -> None:
    error = worst(sessions(4, 2, 16, 16, dtype=dtype, cache=cache, scale=0.25, soft_cap=20.0))
    assert 0 < error < bound


def test_a_cache_in_8_bits_is_refused() -> None:
    graph, _ = attention_graph(2, 2, 8, 8, scale=0.3, soft_cap=2.0)
    with pytest.raises(BuildError, match=r"cache_dtype=u8: .* soft cap.* keeps f32, f16$"):
        openvino.build(graph, {"cache_dtype": "u8"})


def test_the_native_kernel_is_used_where_it_can_be() -> None:
    assert takes(F.Attention(0.3, 5, None, (0.1,)))
    assert not takes(F.Attention(0.3, soft_cap=9.0))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_sinks_in_both_forms(window: int | None, soft_cap: float | None) -> None:
    pair = sessions(6, 2, 16, 16, scale=0.25, sinks=True, window=window, soft_cap=soft_cap)
    assert worst(pair) < 1e-5


@pytest.mark.parametrize("heads", [4, 6, 8])
def test_slopes_of_the_native_kernel(heads: int) -> None:
    pair = sessions(heads, 2, 16, 16, scale=0.25, alibi=SLOPES[:heads])
    assert worst(pair) < 1e-5


def test_padding_never_meets_another_sequence() -> None:
    """Each row that padding reads is the sequence's own, or the row of zeros."""
    step = StepInputs(
        token_ids=np.zeros(4, np.int64),
        positions=np.array([5, 0, 1, 2]),
        sequence_starts=np.array([0, 1, 4], np.int32),
        past_lengths=np.array([5, 0], np.int32),
        block_table=np.array([3, 1, 2], np.int32),
        block_starts=np.array([0, 2, 3], np.int32),
        sequence_slots=np.array([1, 0], np.int32),
        logit_rows=np.zeros(1, np.int64),
    )
    made = padded(step, 4, 99)
    assert made["query_rows"].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert made["cached_rows"].tolist() == [[12, 13, 14, 15, 4], [99] * 5]
    assert made["token_rows"].tolist() == [0, 3, 4, 5]
    for s, owned in enumerate(({0}, {1, 2, 3})):
        assert set(made["query_rows"][s].tolist()) <= owned
