"""States of whole sequences: convolution, selective scan, gated delta rule.

A row of a padded step [S, L] has at most `ROW_TOKENS` tokens, so that a call's tokens meet each
other at once, in products of matrices, and nothing is done token after token: Dao and Gu 2024,
arxiv.org/abs/2405.21060, section 6, and Yang et al. 2024, arxiv.org/abs/2412.06464, section 3.3,
of one chunk each. Everything is computed in f32. Padding neither decays a state nor adds to it.

A state is a network input [S, numbers], padded to what an address must be a multiple of, and what
it becomes an output of its own, which the session copies back: TensorRT shares memory between
inputs and outputs for cache updates alone.
"""

from __future__ import annotations

from math import ceil, log2, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.attention import row_lengths, write_indices
from paddock.engines.tensorrt.bounds import SEQUENCES
from paddock.engines.tensorrt.encoders import not_padding, places
from paddock.engines.tensorrt.network import Tensor
from paddock.graph import DType, Node
from paddock.graph import ops as F
from paddock.graph.tensor import fixed

if TYPE_CHECKING:
    from paddock.engines.tensorrt.lowering import Lowering

ROW_TOKENS = 128
"""Tokens of a row at most, where states are: every token of a row meets every other."""

NEXT = "next."
"""Outputs that are states after a call: this, and the name of the input."""

_ALIGNMENT = 256  # bytes
_NEVER = -1e30
"""An exponent of which nothing is left."""


def state_slots(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """The states [S, *shape] before the call; zeros of a sequence that begins."""
    op = node.op
    assert isinstance(op, F.StateSlots)
    shape = fixed(op.shape[1:])
    held = state.feed(op.key, "state", op.dtype, SEQUENCES, _padded(op))
    if _padded(op) != prod(shape):
        held = state.last_axis(held, 0, prod(shape))
    held = state.view(state.widened(held), (0, *shape))
    is_old = state.once(
        "is old",
        lambda: state.elementwise(
            "GREATER", write_indices(state), state.network.scalar(0, DType.I32, 1)
        ),
    )
    is_old = state.view(is_old, (-1, *(1 for _ in shape)))
    zero = state.network.scalar(0.0, DType.F32, len(shape) + 1)
    return state.network.add("select", is_old, held, zero)


def causal_conv(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """x [tokens, channels], weight [channels, 1, width] -> [tokens, channels]."""
    network = state.network
    x, weight, kept, *_ = inputs
    bias = inputs[6:]
    channels, width = node.inputs[0].type.size(1), node.inputs[1].type.size(2)
    # [S, width + L, channels]: what the sequence had before the call, and its new tokens.
    before = state.view(kept, after=(0, 2, 1))
    whole = state.joined([before, _rows(state, state.widened(x), channels)], 1)
    columns = state.view(state.widened(weight), (1, width, channels), before=(1, 2, 0))
    size = state.joined([state.step_shape(), network.indices(channels)], 0)
    y = None
    for i in range(width):
        layer = network.layer("slice", whole, (0, i + 1, 0), (1, 1, 1), (1, 1, 1))
        network.set_input(layer, 2, size)
        weighed = network.add("slice", columns, (0, i, 0), (1, 1, channels), (1, 1, 1))
        part = state.elementwise("PROD", network.output(layer), weighed)
        y = part if y is None else state.elementwise("SUM", y, part)
    assert y is not None
    if bias:
        y = state.elementwise("SUM", y, state.with_rank(state.widened(bias[0]), 3))
    # The last `width` of what a row has, behind which is its padding.
    numbers = network.constant(np.arange(width, dtype=np.int32)[None], DType.I32)
    last = state.elementwise("SUM", state.view(row_lengths(state), (-1, 1)), numbers)
    layer = network.layer("gather_v2", whole, last, network.enum("GatherMode", "DEFAULT"))
    network.set(layer, "num_elementwise_dims", 1)
    network.set(layer, "axis", 1)
    _keep(state, node.inputs[2], state.view(network.output(layer), after=(0, 2, 1)))
    return state.narrowed(state.view(y, (-1, channels)), node.outputs[0].dtype)


def selective_scan(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """x [tokens, heads, size] -> [tokens, heads, size]."""
    x, dt, a, b, c, d, held, *_ = inputs
    heads, size = node.inputs[0].type.size(1), node.inputs[0].type.size(2)
    groups, n = node.inputs[3].type.size(1), node.inputs[3].type.size(2)
    x = _rows(state, state.widened(x), heads, size)
    dt = _masked(state, _rows(state, state.widened(dt), heads))
    b, c = (_rows(state, state.widened(t), groups, n) for t in (b, c))
    a = state.widened(a)
    form = _scan_by_products if node.inputs[2].type.rank == 1 else _scan_by_doubling
    y, after = form(state, x, dt, a, b, c, held)
    _keep(state, node.inputs[6], after)
    skip = state.elementwise("PROD", x, state.view(state.widened(d), (1, 1, heads, 1)))
    y = state.elementwise("SUM", y, skip)
    return state.narrowed(state.view(y, (-1, heads, size)), node.outputs[0].dtype)


def _scan_by_products(
    state: Lowering, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, held: Tensor
) -> tuple[Tensor, Tensor]:
    """Where a head has one rate: y [S, L, heads, size], and the state afterwards.

    y_i = C_i (exp(sum_i) S_0)^T + sum_j (C_i B_j) exp(sum_i - sum_j) dt_j x_j, sums those of dt A.
    """
    heads, size, groups, n = x.shape[2], x.shape[3], b.shape[2], b.shape[3]
    shared = heads // groups
    x = _by_group(state, state.view(x, after=(0, 2, 1, 3)), groups, shared, -1, size)
    b, c = (_by_group(state, state.view(t, after=(0, 2, 1, 3)), groups, 1, -1, n) for t in (b, c))
    held = state.view(held, (0, groups, shared, size, n))
    dt = state.view(dt, after=(0, 2, 1))  # [S, heads, L]
    sums, total = _sums(state, state.elementwise("PROD", dt, state.view(a, (1, heads, 1))))
    decays = _by_group(state, _decays(state, sums), groups, shared, _length(state), -1)
    weights = state.elementwise("PROD", _product(state, c, b, turn_second=True), decays)
    dt = _by_group(state, dt, groups, shared, 1, -1)
    y = _product(state, state.elementwise("PROD", weights, dt), x)
    since = state.unary("EXP", _by_group(state, sums, groups, shared, -1, 1))
    of_held = _product(state, c, held, turn_second=True)
    y = state.elementwise("SUM", y, state.elementwise("PROD", of_held, since))
    to_end = state.unary("EXP", state.elementwise("SUB", total, sums))
    to_end = state.elementwise("PROD", _by_group(state, to_end, groups, shared, 1, -1), dt)
    x = state.elementwise("PROD", state.view(x, after=(0, 1, 2, 4, 3)), to_end)
    added = _product(state, x, b)
    left = state.unary("EXP", state.view(total, (0, groups, shared, 1, 1)))
    after = state.elementwise("SUM", state.elementwise("PROD", held, left), added)
    y = state.view(_by_group(state, y, heads, -1, size), after=(0, 2, 1, 3))
    return y, state.view(after, (0, heads, size, n))


def _scan_by_doubling(
    state: Lowering, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, held: Tensor
) -> tuple[Tensor, Tensor]:
    """Where each number of a state has a rate of its own.

    S_t = decay_t S_(t-1) + added_t for all t at once.
    """
    network = state.network
    heads, size, groups, n = x.shape[2], x.shape[3], b.shape[2], b.shape[3]
    shared = heads // groups
    b, c = (state.view(_repeated(state, t, shared), (0, 0, heads, 1, n)) for t in (b, c))
    # As [S, L, heads, size, n].
    dt = state.view(dt, (0, 0, heads, 1, 1))
    x = _rows(state, x, heads, size, 1)
    decay = state.unary("EXP", state.elementwise("PROD", dt, state.view(a, (1, 1, heads, 1, n))))
    added = state.elementwise("PROD", state.elementwise("PROD", dt, x), b)
    decay, added = _scanned(state, decay, added)
    held = state.view(held, (0, 1, heads, size, n))
    states = state.elementwise("SUM", state.elementwise("PROD", decay, held), added)
    total = network.enum("ReduceOperation", "SUM")
    y = network.add("reduce", state.elementwise("PROD", states, c), total, 1 << 4, False)
    return y, state.view(_last(state, states), (0, heads, size, n))


def real_gated_recurrence(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """x [tokens, channels] -> the same."""
    x, gate, rates, held, *_ = inputs
    channels = node.inputs[0].type.size(1)
    one = state.network.scalar(1.0, DType.F32, 3)
    x = _masked(state, _rows(state, state.widened(x), channels))
    gate = _masked(state, _rows(state, state.widened(gate), channels))
    exponents = state.elementwise("PROD", gate, state.with_rank(state.widened(rates), 3))
    decay = state.unary("EXP", exponents)
    # 1 - decay^2 as tanh(-exponent) (1 + decay^2), which keeps its digits where decay is near 1.
    tanh = state.network.enum("ActivationType", "TANH")
    share = state.network.add("activation", state.unary("NEG", exponents), tanh)
    square = state.elementwise("SUM", one, state.elementwise("PROD", decay, decay))
    share = state.unary("SQRT", state.elementwise("PROD", share, square))
    share = state.network.add("select", _is_first(state), one, share)
    decay, added = _scanned(state, decay, state.elementwise("PROD", share, x))
    held = state.view(held, (0, 1, channels))
    states = state.elementwise("SUM", state.elementwise("PROD", decay, held), added)
    _keep(state, node.inputs[3], _last(state, states))
    return state.narrowed(state.view(states, (-1, channels)), node.outputs[0].dtype)


def _is_first(state: Lowering) -> Tensor:
    """bool [S, L, 1]: whether a token is the first of its sequence."""

    def make() -> Tensor:
        before = state.view(write_indices(state), (-1, 1, 1))
        place = state.elementwise("SUM", before, state.view(places(state), (1, -1, 1)))
        return state.elementwise("EQUAL", place, state.network.scalar(0, DType.I32, 3))

    return state.once("is first", make)


def _last(state: Lowering, x: Tensor) -> Tensor:
    """[S, L, ...] -> [S, 1, ...]: behind the padding, which changes no state."""
    last = state.elementwise("SUB", _length(state), state.network.indices(1))
    return state.network.add("gather", x, last, 1)


def _scanned(state: Lowering, decay: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """[S, L, ...]: products of decays up to each token, and what has been added by then is worth.

    Of pairs of neighbours, then of pairs of those, over 1, 2, 4, ... tokens: Hillis and Steele
    1986, doi.org/10.1145/7902.7903.
    """
    network, rank = state.network, len(decay.shape)

    def one(decay: Tensor, added: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        return network.add("identity", decay), network.add("identity", added)

    def many(decay: Tensor, added: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        for level in range(_levels(state)):
            step = network.constant(np.full(1, 1 << level, np.int32), DType.I32)
            zero = network.constant(np.zeros(1, np.int32), DType.I32)
            from_ = state.elementwise("SUB", at, step)
            there = state.elementwise("MAX", from_, zero)
            none = state.view(state.elementwise("LESS", from_, zero), (1, -1, *(1,) * (rank - 2)))
            of_nothing = [
                network.constant(np.full((1,) * rank, v, np.float32), DType.F32) for v in (1.0, 0.0)
            ]
            earlier = [
                network.add("select", none, nothing, network.add("gather", t, there, 1))
                for t, nothing in zip((decay, added), of_nothing, strict=True)
            ]
            added = state.elementwise("SUM", added, state.elementwise("PROD", decay, earlier[1]))
            decay = state.elementwise("PROD", decay, earlier[0])
        return decay, added

    decay, added = network.conditionals(
        _is_one_token(state), [decay, added, places(state)], one, many
    )
    return decay, added


def gated_delta_rule(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """v [tokens, heads, value size] -> [tokens, heads, value size].

    With D_ij = exp(sum_i - sum_j), sums those of the gate, what is written for each token is
    u = (1 + A)^-1 b (v - exp(sum) S_0 k), where A_ij = b_i D_ij k_i k_j below the diagonal; then
    y_i = exp(sum_i) S_0 q_i + sum_j<=i D_ij (q_i k_j) u_j.
    """
    q, k, v, gate, beta, held, *_ = inputs
    of_keys, heads = node.inputs[0].type.size(1), node.inputs[2].type.size(1)
    size, values = node.inputs[0].type.size(2), node.inputs[2].type.size(2)
    shared = heads // of_keys
    q, k = (
        _by_group(
            state,
            state.view(_rows(state, state.widened(t), of_keys, size), after=(0, 2, 1, 3)),
            of_keys,
            1,
            -1,
            size,
        )
        for t in (q, k)
    )
    v = state.view(_rows(state, state.widened(v), heads, values), after=(0, 2, 1, 3))
    v = _by_group(state, v, of_keys, shared, -1, values)
    gate, beta = (
        state.view(_masked(state, _rows(state, state.widened(t), heads)), after=(0, 2, 1))
        for t in (gate, beta)
    )
    factor = state.network.scalar(size**-0.5, DType.F32, 5)
    q = state.elementwise("PROD", q, factor)
    held = state.view(held, (0, of_keys, shared, values, size))
    sums, total = _sums(state, gate)
    since = state.unary("EXP", _by_group(state, sums, of_keys, shared, -1, 1))
    decays = _by_group(state, _decays(state, sums), of_keys, shared, _length(state), -1)
    beta = _by_group(state, beta, of_keys, shared, -1, 1)

    among_keys = state.elementwise("PROD", _product(state, k, k, turn_second=True), decays)
    among_keys = state.elementwise("PROD", among_keys, beta)
    expected = state.elementwise("PROD", _product(state, k, held, turn_second=True), since)
    missing = state.elementwise("PROD", state.elementwise("SUB", v, expected), beta)
    written = _solved(state, among_keys, missing)

    y = _product(
        state,
        state.elementwise("PROD", _product(state, q, k, turn_second=True), decays),
        written,
    )
    of_held = state.elementwise("PROD", _product(state, q, held, turn_second=True), since)
    y = state.elementwise("SUM", y, of_held)
    to_end = state.unary("EXP", state.elementwise("SUB", total, sums))
    to_end = _by_group(state, to_end, of_keys, shared, 1, -1)
    added = _product(
        state, state.elementwise("PROD", state.view(written, after=(0, 1, 2, 4, 3)), to_end), k
    )
    left = state.unary("EXP", state.view(total, (0, of_keys, shared, 1, 1)))
    after = state.elementwise("SUM", state.elementwise("PROD", held, left), added)
    _keep(state, node.inputs[5], state.view(after, (0, heads, values, size)))
    y = state.view(_by_group(state, y, heads, -1, values), after=(0, 2, 1, 3))
    return state.narrowed(state.view(y, (-1, heads, values)), node.outputs[0].dtype)


def _solved(state: Lowering, matrix: Tensor, right: Tensor) -> Tensor:
    """(1 + what of the matrix [..., L, L] is below its diagonal)^-1 right [..., L, size].

    Inverses of blocks on the diagonal, of twice the size each time: what is in the lower corner of
    two of them is less the product of the second, the corner and the first. Powers of the matrix,
    of which there would be fewer products, grow before they vanish, and take all digits with them.
    """
    network = state.network

    def numbers(array: Any) -> Tensor:
        wide = network.constant(array.astype(np.float32)[None, None, None], DType.F32)
        layer = network.layer("slice", wide, (0,) * 5, (1,) * 5, (1,) * 5)
        length = _length(state)
        network.set_input(layer, 2, state.joined([network.indices(1, 1, 1), length, length], 0))
        return network.output(layer)

    def corners() -> list[Tensor]:
        at = np.arange(state.bounds.longest_row)
        found = [numbers(np.eye(len(at)))]
        for level in range(_levels(state)):
            block = at >> level
            is_second = (block % 2 == 1)[:, None]
            found.append(numbers((block[:, None] == block + 1) & is_second))
        return found

    def one(matrix: Tensor, right: Tensor, *corners: Tensor) -> Tensor:
        return network.add("identity", right)

    def many(matrix: Tensor, right: Tensor, *corners: Tensor) -> Tensor:
        inverse = corners[0]
        for corner in corners[1:]:
            part = state.elementwise("PROD", matrix, corner)
            part = _product(state, _product(state, inverse, part), inverse)
            inverse = state.elementwise("SUB", inverse, part)
        return _product(state, inverse, right)

    shared = state.once("corners", corners)
    return network.conditional(_is_one_token(state), [matrix, right, *shared], one, many)


def _keep(state: Lowering, source: Any, after: Tensor) -> None:
    """Give what a state becomes, as it is stored."""
    op = source.node.op
    if not isinstance(op, F.StateSlots):
        raise BuildError(f"{source.node.where}: a state is expected, not a {op.name}")
    count, padded = prod(fixed(op.shape[1:])), _padded(op)
    after = state.narrowed(state.view(after, (-1, count)), op.dtype)
    if padded != count:
        rest = state.last_axis(state.fed[op.key], count, padded - count)
        after = state.joined([after, rest], 1)
    state.give(after, NEXT + op.key)


def _padded(op: F.StateSlots) -> int:
    """Numbers of a slot, so that each begins where an address may."""
    each = _ALIGNMENT * 8 // op.dtype.bits
    return ceil(prod(fixed(op.shape[1:])) / each) * each


def _levels(state: Lowering) -> int:
    return max(ceil(log2(state.bounds.longest_row)), 1)


def _rows(state: Lowering, x: Tensor, *tail: int) -> Tensor:
    """[tokens, *tail], or [S, L, ...] -> [S, L, *tail]."""
    network = state.network
    sizes = state.once(
        ("S, L", tail), lambda: state.joined([state.step_shape(), network.indices(*tail)], 0)
    )
    return state.view(x, sizes=sizes)


def _masked(state: Lowering, x: Tensor) -> Tensor:
    """[S, L, heads], zero where there is padding."""
    real = state.once("real", lambda: state.view(not_padding(state), (0, -1, 1)))
    return state.network.add("select", real, x, state.network.scalar(0.0, DType.F32, 3))


def _length(state: Lowering) -> Tensor:
    """i64 [1]: L."""
    return state.once("L", lambda: state.network.add("slice", state.step_shape(), (1,), (1,), (1,)))


def _is_one_token(state: Lowering) -> Tensor:
    """bool []."""
    return state.once(
        "is one token",
        lambda: state.elementwise(
            "EQUAL", state.view(_length(state), ()), state.network.scalar(1, DType.I64, 0)
        ),
    )


def _sums(state: Lowering, x: Tensor) -> tuple[Tensor, Tensor]:
    """[S, heads, L] -> sums up to each token, and [S, heads, 1], of all."""
    network = state.network
    axis = network.scalar(2, DType.I32, 0)
    kind = network.enum("CumulativeOperation", "SUM")
    sums = network.add("cumulative", x, axis, kind, False, False)
    return sums, network.add("reduce", x, network.enum("ReduceOperation", "SUM"), 1 << 2, True)


def _decays(state: Lowering, sums: Tensor) -> Tensor:
    """[S, heads, L] -> [S, heads, L, L]: exp(sum_i - sum_j), and 0 for j > i."""
    network = state.network
    heads = sums.shape[1]

    def not_later() -> Tensor:
        at = places(state)
        i, j = state.view(at, (1, 1, -1, 1)), state.view(at, (1, 1, 1, -1))
        return state.unary("NOT", state.elementwise("GREATER", j, i))

    to, since = _by_group(state, sums, heads, -1, 1), _by_group(state, sums, heads, 1, -1)
    exponents = state.elementwise("SUB", to, since)
    seen = state.once("not later", not_later)
    never = network.scalar(_NEVER, DType.F32, 4)
    return state.unary("EXP", network.add("select", seen, exponents, never))


def _by_group(state: Lowering, x: Tensor, *tail: int | Tensor) -> Tensor:
    """[S, ...] seen as [S, *tail]; a size may be -1, or a tensor i64 [1]."""
    network = state.network
    rows = state.once("S", lambda: network.add("slice", state.step_shape(), (0,), (1,), (1,)))
    sizes = [network.indices(t) if isinstance(t, int) else t for t in tail]
    return state.view(x, sizes=state.joined([rows, *sizes], 0))


def _repeated(state: Lowering, x: Tensor, times: int) -> Tensor:
    """[S, L, groups, n] -> [S, L, groups * times, n]: each group as often as heads share it."""
    if times == 1:
        return x
    places_ = np.repeat(np.arange(x.shape[2], dtype=np.int32), times)
    return state.network.add("gather", x, state.network.constant(places_, DType.I32), 2)


def _product(state: Lowering, x: Tensor, y: Tensor, *, turn_second: bool = False) -> Tensor:
    none, turned = (state.network.enum("MatrixOperation", n) for n in ("NONE", "TRANSPOSE"))
    return state.network.add("matrix_multiply", x, none, y, turned if turn_second else none)
