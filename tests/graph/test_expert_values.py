"""What the ops of experts compute, against plain loops in f64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paddock.graph.ops as F
from paddock.graph import Array, DType


def softmax(values: list[float]) -> list[float]:
    raised = [math.exp(v - max(values)) for v in values]
    return [r / sum(raised) for r in raised]


def routed(op: F.Route, logits: list[float], bias: list[float]) -> list[tuple[float, int]]:
    """One token's weights and experts, as the papers write it."""
    scores = {
        "softmax": softmax(logits),
        "sigmoid": [1 / (1 + math.exp(-v)) for v in logits],
        "chosen_softmax": logits,
    }[op.scores]
    preferred = [s + b for s, b in zip(scores, bias, strict=True)]
    size = len(logits) // op.groups
    groups = [range(g * size, (g + 1) * size) for g in range(op.groups)]
    best = [sum(sorted(preferred[e] for e in group)[-op.group_best :]) for group in groups]
    kept = sorted(range(op.groups), key=lambda g: -best[g])[: op.kept_groups]
    allowed = {e for g in kept for e in groups[g]}
    order = sorted(range(len(logits)), key=lambda e: (e not in allowed, -preferred[e]))
    ids = order[: op.chosen]
    weights = [scores[e] for e in ids]
    if op.scores == "chosen_softmax":
        weights = softmax(weights)
    if op.normalize:
        weights = [w / (sum(weights) + op.epsilon) for w in weights]
    return [(w * op.scale, e) for w, e in zip(weights, ids, strict=True)]


OPS = [
    F.Route(2),
    F.Route(3, normalize=True),
    F.Route(8, "chosen_softmax"),
    F.Route(3, "chosen_softmax", scale=0.5),
    F.Route(2, "sigmoid", normalize=True, epsilon=0.1, scale=2.5),
    F.Route(3, "sigmoid", groups=4, kept_groups=2, group_best=2),
    F.Route(2, "softmax", groups=2, kept_groups=1),
]


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_route(op: F.Route, biased: bool) -> None:
    random = np.random.default_rng(op.chosen)
    logits = random.standard_normal((50, 8))
    bias = random.uniform(0, 0.5, 8) * biased
    weights, ids = op.compute(logits, *([bias] if biased else []))
    for token in range(len(logits)):
        expected = routed(op, logits[token].tolist(), bias.tolist())
        assert ids[token].tolist() == [e for _, e in expected]
        np.testing.assert_allclose(weights[token], [w for w, _ in expected], rtol=1e-12)


def test_of_equals_the_lower_number_is_chosen() -> None:
    _, ids = F.Route(2).compute(np.zeros((1, 6), np.float32))
    assert ids.tolist() == [[0, 1]]


def test_sparsemixer_weighs_an_expert_against_those_near_it() -> None:
    """Two logits of 1.0 and 0.9 are within 2 x 0.1 of one another, -3 of neither."""
    weights, ids = F.Route(2, "sparsemixer", jitter=0.1).compute(np.array([[-3.0, 0.9, 1.0]]))
    assert ids.tolist() == [[2, 1]]
    first = math.exp(1.0) / (math.exp(1.0) + math.exp(0.9))
    np.testing.assert_allclose(weights, [[first, 1.0]])


def test_weights_are_f32_whatever_the_logits() -> None:
    weights, _ = F.Route(2).compute(np.ones((1, 4), DType.BF16.numpy))
    assert weights.dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(1, 9),
    chosen=st.integers(1, 3),
    each=st.booleans(),
    biased=st.booleans(),
    first=st.none() | st.integers(0, 4),
)
def test_grouped_linear(
    seed: int, tokens: int, chosen: int, each: bool, biased: bool, first: int | None
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, chosen, 6) if each else (tokens, 6))
    weight = random.standard_normal((4, 5, 6))
    bias = random.standard_normal((4, 5)) * biased
    ids = random.integers(0, 4 if first is None else 9, (tokens, chosen))
    found = F.GroupedLinear(first).compute(x, weight, ids, *([bias] if biased else []))
    expected = np.zeros((tokens, chosen, 5))
    for t in range(tokens):
        for c in range(chosen):
            held = ids[t, c] - (first or 0)
            if 0 <= held < 4:
                row: Array = x[t, c] if each else x[t]
                expected[t, c] = weight[held] @ row + bias[held]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_shares_of_the_experts_add_up_to_all_of_them() -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((5, 6)), random.standard_normal((8, 3, 6))
    ids = np.stack([random.permutation(8)[:2] for _ in range(5)])
    shares = [F.GroupedLinear(f).compute(x, weight[f : f + 2], ids) for f in range(0, 8, 2)]
    np.testing.assert_allclose(np.sum(shares, 0), F.GroupedLinear().compute(x, weight, ids))


def test_weighted_sum() -> None:
    random = np.random.default_rng(0)
    y, weights = random.standard_normal((5, 3, 6)), random.uniform(size=(5, 3))
    found = F.WeightedSum().compute(y, weights)
    np.testing.assert_allclose(found, np.einsum("tcf,tc->tf", y, weights))


@pytest.mark.parametrize("turned", [False, True])
def test_head_linear(turned: bool) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((3, 7, 5))
    x = random.standard_normal((4, 3, 2 if turned else 5))
    found = F.HeadLinear(4, 2, turned).compute(x, weight)
    how = "thn,hnr->thr" if turned else "thr,hnr->thn"
    np.testing.assert_allclose(found, np.einsum(how, x, weight[:, 4:6]))
