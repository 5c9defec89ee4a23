"""What the recurrent ops compute, token by token in f64, however a sequence is cut into steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paddock.graph.ops as F
from paddock.graph import Array, Op

Tokens = tuple[Array, ...]  # what an op is given of each token


def conv_alone(tokens: Tokens, weight: Array, bias: Array) -> Array:
    (x,) = tokens
    y = np.zeros_like(x)
    for t in range(len(x)):
        for i in range(weight.shape[2]):
            source = t - weight.shape[2] + 1 + i
            if source >= 0:
                y[t] += weight[:, 0, i] * x[source]
    return y + bias


def scan_alone(tokens: Tokens, a: Array, d: Array) -> Array:
    x, dt, b, c = tokens
    heads, size, n = x.shape[1], x.shape[2], b.shape[2]
    rates = a if a.ndim == 2 else np.repeat(a[:, None], n, axis=1)
    y = np.zeros_like(x)
    for h in range(heads):
        group = h * b.shape[1] // heads
        s = np.zeros((size, n))
        for t in range(len(x)):
            s = np.exp(dt[t, h] * rates[h]) * s + dt[t, h] * np.outer(x[t, h], b[t, group])
            y[t, h] = s @ c[t, group] + d[h] * x[t, h]
    return y


def delta_alone(tokens: Tokens) -> Array:
    q, k, v, gate, beta = tokens
    y = np.zeros_like(v)
    for h in range(v.shape[1]):
        key_head = h * q.shape[1] // v.shape[1]
        s = np.zeros((v.shape[2], q.shape[2]))
        for t in range(len(v)):
            key = k[t, key_head]
            s = np.exp(gate[t, h]) * s
            s = s + beta[t, h] * np.outer(v[t, h] - s @ key, key)
            y[t, h] = s @ q[t, key_head] / np.sqrt(q.shape[2])
    return y


def in_steps(
    op: Op,
    sequences: Sequence[Tokens],
    plan: Sequence[Sequence[int]],
    call: Callable[[Tokens, Array, tuple[Array, ...]], Array],
    state_shape: tuple[int, ...],
) -> list[Array]:
    """Each sequence's results; the slots hold another sequence's state to begin with."""
    state = np.full((len(sequences) + 2, *state_shape), 7.0)
    slots = np.arange(len(sequences), 0, -1)
    done = [0] * len(sequences)
    made: list[list[Array]] = [[] for _ in sequences]
    for step in plan:
        some = [s for s in range(len(sequences)) if step[s]]
        if not some:
            continue
        cut = [slice(done[s], done[s] + step[s]) for s in some]
        packed = tuple(
            np.concatenate([sequences[s][i][c] for s, c in zip(some, cut, strict=True)])
            for i in range(len(sequences[0]))
        )
        starts = np.cumsum([0, *(step[s] for s in some)])
        past = np.array([done[s] for s in some])
        y = call(packed, state, (starts, past, slots[some]))
        for index, s in enumerate(some):
            made[s].append(y[starts[index] : starts[index + 1]])
            done[s] += step[s]
    assert (state[[0, -1]] == 7.0).all()  # rows of nobody
    return [np.concatenate(pieces) for pieces in made]


plans = st.lists(
    st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=5
).filter(lambda plan: all(sum(step[s] for step in plan) for s in range(2)))


def lengths(plan: Sequence[Sequence[int]]) -> list[int]:
    return [sum(step[s] for step in plan) for s in range(2)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), plan=plans, width=st.integers(1, 4), biased=st.booleans())
def test_causal_conv(seed: int, plan: list[list[int]], width: int, biased: bool) -> None:
    random = np.random.default_rng(seed)
    weight, bias = random.standard_normal((3, 1, width)), random.standard_normal(3) * biased
    sequences: list[Tokens] = [(random.standard_normal((n, 3)),) for n in lengths(plan)]
    op = F.CausalConv()
    found = in_steps(
        op,
        sequences,
        plan,
        lambda t, state, step: op.compute(t[0], weight, state, *step, *([bias] if biased else [])),
        (3, width),
    )
    for tokens, y in zip(sequences, found, strict=True):
        np.testing.assert_allclose(y, conv_alone(tokens, weight, bias), atol=1e-12)


def gated_alone(tokens: Tokens, rates: Array) -> Array:
    """Equations 3 to 6 of arxiv.org/abs/2402.19427, channel by channel."""
    x, gate = tokens
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        for t in range(len(x)):
            a = math.exp(rates[c] * gate[t, c])
            y[t, c] = x[t, c] if t == 0 else a * y[t - 1, c] + math.sqrt(1 - a * a) * x[t, c]
    return y


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    plan=plans,
    heads=st.sampled_from([(4, 2, 3), (4, 4, 1), (2, 1, 2)]),
    each=st.booleans(),
)
def test_selective_scan(
    seed: int, plan: list[list[int]], heads: tuple[int, int, int], each: bool
) -> None:
    random = np.random.default_rng(seed)
    count, groups, size = heads
    a = -random.uniform(0.1, 2, (count, 5) if each else count)
    d = random.standard_normal(count)
    sequences: list[Tokens] = [
        (
            random.standard_normal((n, count, size)),
            random.uniform(0.1, 1, (n, count)),
            random.standard_normal((n, groups, 5)),
            random.standard_normal((n, groups, 5)),
        )
        for n in lengths(plan)
    ]
    op = F.SelectiveScan()

    def call(t: Tokens, state: Array, step: tuple[Array, ...]) -> Array:
        x, dt, b, c = t
        return op.compute(x, dt, a, b, c, d, state, *step)

    found = in_steps(op, sequences, plan, call, (count, size, 5))
    for tokens, y in zip(sequences, found, strict=True):
        np.testing.assert_allclose(y, scan_alone(tokens, a, d), atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), plan=plans, heads=st.sampled_from([(2, 4), (3, 3)]))
def test_gated_delta_rule(seed: int, plan: list[list[int]], heads: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    key_heads, count = heads
    sequences: list[Tokens] = [
        (
            random.standard_normal((n, key_heads, 4)),
            random.standard_normal((n, key_heads, 4)) / 2,
            random.standard_normal((n, count, 3)),
            -random.uniform(0, 2, (n, count)),
            random.uniform(0, 1, (n, count)),
        )
        for n in lengths(plan)
    ]
    op = F.GatedDeltaRule()

    def call(t: Tokens, state: Array, step: tuple[Array, ...]) -> Array:
        q, k, v, gate, beta = t
        starts, past, slots = step
        return op.compute(q, k, v, gate, beta, state, starts, past, slots)

    found = in_steps(op, sequences, plan, call, (count, 3, 4))
    for tokens, y in zip(sequences, found, strict=True):
        np.testing.assert_allclose(y, delta_alone(tokens), atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), plan=plans)
def test_real_gated_recurrence(seed: int, plan: list[list[int]]) -> None:
    random = np.random.default_rng(seed)
    rates = -random.uniform(0.1, 8, 5)
    sequences: list[Tokens] = [
        (random.standard_normal((n, 5)), random.uniform(0, 1, (n, 5))) for n in lengths(plan)
    ]
    op = F.RealGatedRecurrence()

    def call(t: Tokens, state: Array, step: tuple[Array, ...]) -> Array:
        (x, gate), (starts, past, slots) = t, step
        return op.compute(x, gate, rates, state, starts, past, slots)

    found = in_steps(op, sequences, plan, call, (5, 1, 1))
    for tokens, y in zip(sequences, found, strict=True):
        np.testing.assert_allclose(y, gated_alone(tokens, rates), atol=1e-11)


STATEFUL = [F.CausalConv(), F.SelectiveScan(), F.GatedDeltaRule(), F.RealGatedRecurrence()]


@pytest.mark.parametrize("op", STATEFUL)
def test_they_write(op: Op) -> None:
    """So no pass may merge two of them, or compute one twice."""
    assert op.has_effects
