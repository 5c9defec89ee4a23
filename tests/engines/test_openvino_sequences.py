"""Attention within whole sequences, as OpenVINO computes it, equals its NumPy definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddock.graph import DType, Tensor
from paddock.graph import ops as F
from paddock.graph.tensor import STARTS
from tests.engines.lowered import Build, Case, compiled, error, layer_types
from tests.engines.test_openvino_lowering import values


def attended(
    lengths: list[int],
    *,
    heads: int = 4,
    kv_heads: int = 4,
    size: int = 16,
    window: int | None = None,
    buckets: int | None = None,
    layers: int = 1,
) -> Build:
    def build(case: Case) -> Tensor:
        total = sum(lengths)
        case.fed["starts"] = np.cumsum([0, *lengths]).astype(np.int32)
        starts = F.input_tensor("starts", DType.I32, STARTS)
        q = case.tokens("q", values(total, heads, size))
        k = case.tokens("k", values(total, kv_heads, size, seed=1))
        v = case.tokens("v", values(total, kv_heads, size, seed=2))
        table = case.weight("table", values(buckets, heads, seed=3)) if buckets else None
        for _ in range(layers):
            q = F.bidirectional_attention(
                q,
                k,
                v,
                sequence_starts=starts,
                scale=0.4,
                window=window,
                biases=table,
                max_distance=20,
            )
        return q

    return build


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    group=st.sampled_from([1, 2]),
    window=st.none() | st.integers(0, 9),
    buckets=st.none() | st.sampled_from([8, 32]),
)
def test_lowering_computes_the_definition(
    lengths: list[int], group: int, window: int | None, buckets: int | None
) -> None:
    build = attended(lengths, kv_heads=4 // group, window=window, buckets=buckets)
    assert error(build) < 5e-6


@pytest.mark.parametrize("lengths", [[1], [700], [1, 1, 1], [300, 1, 2], [5, 64, 3, 64]])
def test_lengths_of_every_kind(lengths: list[int]) -> None:
    assert error(attended(lengths, window=7, buckets=8)) < 5e-6


def test_layers_share_one_padding() -> None:
    one, four = (layer_types(compiled(attended([3, 5], layers=n))[0]) for n in (1, 4))
    for kind in ("Range", "Reduce", "ShapeOf"):
        assert one.count(kind) == four.count(kind)


@pytest.mark.parametrize("lengths", [[1], [5, 64, 3, 64], [1, 1, 1], [30, 1]])
def test_means_are_those_of_the_definition(lengths: list[int]) -> None:
    def build(case: Case) -> Tensor:
        case.fed["starts"] = np.cumsum([0, *lengths]).astype(np.int32)
        starts = F.input_tensor("starts", DType.I32, STARTS)
        return F.sequence_mean(case.tokens("x", values(sum(lengths), 24)), starts)

    assert error(build) < 5e-6
