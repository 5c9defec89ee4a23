"""Ops that carry a state along each sequence: convolution, scans, gated delta rule.

Tokens of several sequences lie packed behind one another. Each sequence's state is a row of
`state`, named by `sequence_slots`; it is read where the sequence has tokens before the step, taken
as zeros where it has none, and written. The last operands of each op are the step's
`sequence_starts`, `past_lengths`, `sequence_slots` (see `paddock.engines.protocol.StepInputs`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Shape, Tensor, TensorType


@dataclass(frozen=True)
class CausalConv(Op):
    """Each channel's last inputs, weighed: y_t = sum_i w_i x_(t - width + 1 + i) + b.

    x [tokens, channels], weight [channels, 1, width], state [slots, channels, width], which holds
    a sequence's last inputs, oldest first; the step; and if there is one, a bias [channels].
    """

    has_effects: ClassVar[bool] = True  # it writes into the state

    def infer(
        self,
        x: TensorType,
        weight: TensorType,
        state: TensorType,
        sequence_starts: TensorType,
        past_lengths: TensorType,
        sequence_slots: TensorType,
        *bias: TensorType,
    ) -> TensorType:
        if x.rank != 2 or weight.rank != 3 or weight.shape[:2] != (x.shape[1], 1):
            raise GraphError(
                f"expected x [tokens, channels] and weight [channels, 1, width]: {x}, {weight}"
            )
        if not x.dtype.is_float or any(t.dtype is not x.dtype for t in (weight, *bias)):
            raise GraphError(f"expected floats of one type: {x}, {weight}; cast one of them")
        if len(bias) > 1 or any(b.shape != x.shape[1:] for b in bias):
            raise GraphError(f"expected one bias for the channels of {x}: {bias}")
        _check_state(state, (x.shape[1], weight.shape[2]))
        _check_step(sequence_starts, past_lengths, sequence_slots)
        return x

    def compute(
        self,
        x: Array,
        weight: Array,
        state: Array,
        sequence_starts: Array,
        past_lengths: Array,
        sequence_slots: Array,
        *bias: Array,
    ) -> Array:
        wide, width = widen(x), weight.shape[2]
        y = np.empty_like(wide)
        steps = (sequence_starts, past_lengths, sequence_slots)
        for tokens, slot, kept in _sequences(state, *steps):
            inputs = np.concatenate([widen(kept).T.astype(wide.dtype), wide[tokens]])
            windows = np.lib.stride_tricks.sliding_window_view(inputs[1:], width, axis=0)
            y[tokens] = np.einsum("tcw,cw->tc", windows, widen(weight)[:, 0])
            state[slot] = inputs[-width:].T
        if bias:
            y = y + widen(bias[0])
        return y.astype(x.dtype)


@dataclass(frozen=True)
class SelectiveScan(Op):
    """The recurrence of Mamba: S_t = exp(dt_t A) S_(t-1) + dt_t x_t B_t^T, y_t = S_t C_t + D x_t.

    x [tokens, heads, size], dt [tokens, heads], A [heads], or [heads, n] where each number of the
    state decays at a rate of its own, B and C [tokens, groups, n], which neighbouring heads share,
    D [heads], and the state [slots, heads, size, n]. Gu and Dao 2023, arxiv.org/abs/2312.00752;
    Dao and Gu 2024, arxiv.org/abs/2405.21060.
    """

    has_effects: ClassVar[bool] = True  # it writes into the state

    def infer(
        self,
        x: TensorType,
        dt: TensorType,
        a: TensorType,
        b: TensorType,
        c: TensorType,
        d: TensorType,
        state: TensorType,
        sequence_starts: TensorType,
        past_lengths: TensorType,
        sequence_slots: TensorType,
    ) -> TensorType:
        if x.rank != 3 or dt.shape != x.shape[:2] or d.shape != (x.shape[1],):
            raise GraphError(
                f"expected x [tokens, heads, size], dt [tokens, heads], D [heads]: {x}, {dt}, {d}"
            )
        if b.rank != 3 or b != c or b.shape[0] != x.shape[0] or x.size(1) % b.size(1):
            raise GraphError(
                f"expected B and C [tokens, groups, n] whose groups share {x}: {b}, {c}"
            )
        if a.shape not in ((x.shape[1],), (x.shape[1], b.shape[2])):
            raise GraphError(f"expected A [heads] or [heads, {b.shape[2]}] for {x}: {a}")
        if not x.dtype.is_float or any(t.dtype is not x.dtype for t in (dt, a, b, c, d)):
            raise GraphError(f"expected floats of one type: {x}, {dt}, {a}, {b}, {c}, {d}")
        _check_state(state, (x.shape[1], x.shape[2], b.shape[2]))
        _check_step(sequence_starts, past_lengths, sequence_slots)
        return x

    def compute(
        self,
        x: Array,
        dt: Array,
        a: Array,
        b: Array,
        c: Array,
        d: Array,
        state: Array,
        sequence_starts: Array,
        past_lengths: Array,
        sequence_slots: Array,
    ) -> Array:
        wide, steps = widen(x), widen(dt)
        shared = wide.shape[1] // b.shape[1]
        key, query = (np.repeat(widen(t), shared, axis=1) for t in (b, c))
        rates = widen(a).reshape(wide.shape[1], 1, -1)
        y = np.empty_like(wide)
        step = (sequence_starts, past_lengths, sequence_slots)
        for tokens, slot, kept in _sequences(state, *step):
            s = widen(kept).astype(wide.dtype)
            for t in range(tokens.start, tokens.stop):
                decay = np.exp(rates * steps[t, :, None, None])
                s = decay * s + (steps[t, :, None] * wide[t])[..., None] * key[t, :, None]
                y[t] = np.einsum("hpn,hn->hp", s, query[t])
            state[slot] = s
        return (y + widen(d)[:, None] * wide).astype(x.dtype)


@dataclass(frozen=True)
class GatedDeltaRule(Op):
    """A matrix that forgets by a gate and is corrected towards v at k, read at q.

    S = exp(g_t) S_(t-1); S_t = S + b_t (v_t - S k_t) k_t^T; y_t = S_t q_t / sqrt(key size).
    q and k [tokens, key heads, key size], which neighbouring heads share; v [tokens, heads, value
    size]; gate g and beta b [tokens, heads]; state [slots, heads, value size, key size].
    Yang et al. 2024, arxiv.org/abs/2412.06464.
    """

    has_effects: ClassVar[bool] = True  # it writes into the state

    def infer(
        self,
        q: TensorType,
        k: TensorType,
        v: TensorType,
        gate: TensorType,
        beta: TensorType,
        state: TensorType,
        sequence_starts: TensorType,
        past_lengths: TensorType,
        sequence_slots: TensorType,
    ) -> TensorType:
        if not q.rank == v.rank == 3 or q != k or q.shape[0] != v.shape[0]:
            raise GraphError(f"expected q, k and v [tokens, heads, size]: {q}, {k}, {v}")
        if v.size(1) % q.size(1):
            raise GraphError(f"{v.size(1)} heads do not share the {q.size(1)} of {q}")
        if gate.shape != v.shape[:2] or beta.shape != v.shape[:2]:
            raise GraphError(f"expected gate and beta [tokens, heads] for {v}: {gate}, {beta}")
        if not v.dtype.is_float or any(t.dtype is not v.dtype for t in (q, gate, beta)):
            raise GraphError(f"expected floats of one type: {q}, {v}, {gate}, {beta}")
        _check_state(state, (v.shape[1], v.shape[2], q.shape[2]))
        _check_step(sequence_starts, past_lengths, sequence_slots)
        return v

    def compute(
        self,
        q: Array,
        k: Array,
        v: Array,
        gate: Array,
        beta: Array,
        state: Array,
        sequence_starts: Array,
        past_lengths: Array,
        sequence_slots: Array,
    ) -> Array:
        values, decay, strength = widen(v), np.exp(widen(gate)), widen(beta)
        shared = v.shape[1] // q.shape[1]
        keys, queries = (np.repeat(widen(t), shared, axis=1) for t in (k, q))
        queries = queries * values.dtype.type(q.shape[2] ** -0.5)
        y = np.empty_like(values)
        step = (sequence_starts, past_lengths, sequence_slots)
        for tokens, slot, kept in _sequences(state, *step):
            s = widen(kept).astype(values.dtype)
            for t in range(tokens.start, tokens.stop):
                s = decay[t, :, None, None] * s
                missing = values[t] - np.einsum("hvk,hk->hv", s, keys[t])
                s = s + (strength[t, :, None] * missing)[..., None] * keys[t, :, None]
                y[t] = np.einsum("hvk,hk->hv", s, queries[t])
            state[slot] = s
        return y.astype(v.dtype)


@dataclass(frozen=True)
class RealGatedRecurrence(Op):
    """Channels that forget by a gate of each token's, as the RG-LRU has them:

    h_t = a_t h_(t-1) + sqrt(1 - a_t^2) x_t with a_t = exp(gate_t rate). Of a sequence that has no
    past the first x counts whole. x and gate [tokens, channels], gate from 0 to 1; rates
    [channels], below 0; state [slots, channels, 1, 1]. De et al. 2024, arxiv.org/abs/2402.19427,
    section 2.4.
    """

    has_effects: ClassVar[bool] = True  # it writes into the state

    def infer(
        self,
        x: TensorType,
        gate: TensorType,
        rates: TensorType,
        state: TensorType,
        sequence_starts: TensorType,
        past_lengths: TensorType,
        sequence_slots: TensorType,
    ) -> TensorType:
        if x.rank != 2 or gate != x or rates != x.with_shape(x.shape[1]):
            raise GraphError(
                f"expected x and gate [tokens, channels], rates [channels]: {x}, {gate}, {rates}"
            )
        if not x.dtype.is_float:
            raise GraphError(f"expected floats: {x}")
        _check_state(state, (x.shape[1], 1, 1))
        _check_step(sequence_starts, past_lengths, sequence_slots)
        return x

    def compute(
        self,
        x: Array,
        gate: Array,
        rates: Array,
        state: Array,
        sequence_starts: Array,
        past_lengths: Array,
        sequence_slots: Array,
    ) -> Array:
        exponents = widen(gate) * widen(rates)
        kept_shares = np.exp(exponents)
        added = np.sqrt(-np.expm1(2 * exponents)) * widen(x)
        for past, start in zip(past_lengths, sequence_starts, strict=False):
            if not past and start < len(x):
                added[start] = widen(x)[start]
        y = np.empty_like(added)
        for tokens, slot, kept in _sequences(state, sequence_starts, past_lengths, sequence_slots):
            h = widen(kept)[:, 0, 0].astype(added.dtype)
            for t in range(tokens.start, tokens.stop):
                h = kept_shares[t] * h + added[t]
                y[t] = h
            state[slot] = h[:, None, None]
        return y.astype(x.dtype)


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, step: tuple[Tensor, ...]
) -> Tensor:
    """x: [tokens, channels], weight: [channels, 1, width] -> [tokens, channels]."""
    op = CausalConv()
    operands = (x, weight, state, *step)
    y: Tensor = op(*operands) if bias is None else op(*operands, bias)
    return y


def selective_scan(
    x: Tensor,
    *,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    state: Tensor,
    step: tuple[Tensor, ...],
) -> Tensor:
    """x: [tokens, heads, size], dt: [tokens, heads], b and c: [tokens, groups, n]
    -> [tokens, heads, size]."""
    y: Tensor = SelectiveScan()(x, dt, a, b, c, d, state, *step)
    return y


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gate: Tensor,
    beta: Tensor,
    state: Tensor,
    step: tuple[Tensor, ...],
) -> Tensor:
    """q and k: [tokens, key heads, key size], v: [tokens, heads, value size]
    -> [tokens, heads, value size]."""
    y: Tensor = GatedDeltaRule()(q, k, v, gate, beta, state, *step)
    return y


def real_gated_recurrence(
    x: Tensor, *, gate: Tensor, rates: Tensor, state: Tensor, step: tuple[Tensor, ...]
) -> Tensor:
    """x and gate: [tokens, channels], rates: [channels] -> [tokens, channels]."""
    y: Tensor = RealGatedRecurrence()(x, gate, rates, state, *step)
    return y


def _sequences(
    state: Array, sequence_starts: Array, past_lengths: Array, sequence_slots: Array
) -> Iterator[tuple[slice, int, Array]]:
    """Of each sequence its tokens, its slot and what it remembers."""
    for s, slot in enumerate(sequence_slots):
        kept = state[slot] if past_lengths[s] else np.zeros_like(state[slot])
        yield slice(sequence_starts[s], sequence_starts[s + 1]), int(slot), kept


def _check_state(state: TensorType, shape: Shape) -> None:
    if state.shape[1:] != shape or not state.dtype.is_float:
        raise GraphError(f"the state {state} does not hold {list(shape)} a sequence")


def _check_step(
    sequence_starts: TensorType, past_lengths: TensorType, sequence_slots: TensorType
) -> None:
    steps = (sequence_starts, past_lengths, sequence_slots)
    if any(t.rank != 1 or not t.dtype.is_index for t in steps):
        raise GraphError(f"expected integers along one axis: {', '.join(map(str, steps))}")
    if past_lengths.shape != sequence_slots.shape:
        raise GraphError(f"of different sequences: {past_lengths}, {sequence_slots}")
