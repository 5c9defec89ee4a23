"""OpenVINO's kernels of recurrent layers compute the ops' definitions, step after step.

Sequences of different ages share steps, in slots that others have used before them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("openvino", reason="the openvino engine needs openvino")

from paddock.engines import openvino, reference
from paddock.engines.protocol import BuildError, Session, StepInputs
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph import ops as F
from paddock.graph.tensor import SEQUENCES, SLOTS, STARTS, TOKENS
from tests.engines.lowered import Held

CHANNELS = 12
# New tokens of three sequences in each step.
PLAN = ((3, 0, 5), (1, 7, 1), (0, 1, 1), (4, 1, 0), (1, 1, 1))

Build = Callable[[Tensor, "Weights", tuple[Tensor, ...]], Tensor]


class Weights:
    """Random arrays, as operands of the graph and for a session to read."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._random = np.random.default_rng(0)

    def __call__(self, name: str, *shape: int, spread: float = 1.0) -> Tensor:
        array = (spread * self._random.standard_normal(shape)).astype(np.float32)
        self.arrays[name] = array
        tensor: Tensor = F.Weight(name, DType.F32, shape)()
        return tensor


def state(name: str, *shape: int) -> Tensor:
    tensor: Tensor = F.StateSlots(name, DType.F32, (SLOTS, *shape))()
    return tensor


def conv(x: Tensor, w: Weights, step: tuple[Tensor, ...]) -> Tensor:
    weight = w("w", CHANNELS, 1, 4)
    return F.causal_conv(x, weight, w("b", CHANNELS), state("s", CHANNELS, 4), step)


def conv_without_bias(x: Tensor, w: Weights, step: tuple[Tensor, ...]) -> Tensor:
    return F.causal_conv(x, w("w", CHANNELS, 1, 3), None, state("s", CHANNELS, 3), step)


def scanned(x: Tensor, w: Weights, step: tuple[Tensor, ...], groups: int, each: bool) -> Tensor:
    heads, size = (CHANNELS, 1) if each else (4, 3)
    n = 8
    rates = F.activation(w("a", *((heads, n) if each else (heads,))), "softplus") * -1.0
    dt = F.activation(F.linear(x, w("dt", heads, CHANNELS)), "softplus")
    b, c = (F.reshape(F.linear(x, w(k, groups * n, CHANNELS)), groups, n) for k in "bc")
    y = F.selective_scan(
        F.reshape(x, heads, size),
        dt=dt,
        a=rates,
        b=b,
        c=c,
        d=w("d", heads),
        state=state("s", heads, size, n),
        step=step,
    )
    return F.reshape(y, CHANNELS)


def delta(x: Tensor, w: Weights, step: tuple[Tensor, ...]) -> Tensor:
    q, k = (F.reshape(F.linear(x, w(n, 16, CHANNELS, spread=0.2)), 2, 8) for n in "qk")
    v = F.reshape(F.linear(x, w("v", 24, CHANNELS)), 4, 6)
    gate = F.activation(F.linear(x, w("g", 4, CHANNELS)), "softplus") * -1.0
    beta = F.activation(F.linear(x, w("beta", 4, CHANNELS)), "sigmoid")
    y = F.gated_delta_rule(q, k, v, gate=gate, beta=beta, state=state("s", 4, 6, 8), step=step)
    return F.reshape(y, 24)


def gated(x: Tensor, w: Weights, step: tuple[Tensor, ...], closes: bool) -> Tensor:
    gate = F.linear(x, w("g", CHANNELS, CHANNELS))
    return F.real_gated_recurrence(
        x,
        gate=F.clamp(gate, 0, 1) if closes else F.activation(gate, "sigmoid"),
        rates=F.activation(w("a", CHANNELS, spread=2), "softplus") * -8.0,
        state=state("s", CHANNELS, 1, 1),
        step=step,
    )


CASES: dict[str, Build] = {
    "causal conv": conv,
    "causal conv without a bias": conv_without_bias,
    "selective scan": lambda x, w, step: scanned(x, w, step, 1, False),
    "selective scan in groups": lambda x, w, step: scanned(x, w, step, 2, False),
    "selective scan of rates": lambda x, w, step: scanned(x, w, step, 1, True),
    "gated delta rule": delta,
    "real gated recurrence": lambda x, w, step: gated(x, w, step, False),
    "real gated recurrence of gates that close": lambda x, w, step: gated(x, w, step, True),
}


def graph_of(build: Build) -> tuple[Graph, Held]:
    weights = Weights()
    with use_graph(Graph()) as graph:
        step = (
            F.input_tensor("sequence_starts", DType.I32, STARTS),
            F.input_tensor("past_lengths", DType.I32, SEQUENCES),
            F.input_tensor("sequence_slots", DType.I32, SEQUENCES),
        )
        table = weights("table", 50, CHANNELS)
        x = F.gather(table, F.input_tensor("token_ids", DType.I64, TOKENS))
        graph.outputs = (build(x, weights, step),)
    return graph, Held(weights.arrays)


def steps() -> list[StepInputs]:
    random = np.random.default_rng(1)
    past, made = [0, 0, 0], []
    slots = [4, 0, 3]
    for counts in PLAN:
        some = [s for s in range(3) if counts[s]]
        new = [counts[s] for s in some]
        made.append(
            StepInputs(
                token_ids=random.integers(0, 50, sum(new)),
                positions=np.concatenate([np.arange(past[s], past[s] + counts[s]) for s in some]),
                sequence_starts=np.cumsum([0, *new]).astype(np.int32),
                past_lengths=np.array([past[s] for s in some], np.int32),
                block_table=np.zeros(0, np.int32),
                block_starts=np.zeros(len(some) + 1, np.int32),
                sequence_slots=np.array([slots[s] for s in some], np.int32),
                logit_rows=np.zeros(1, np.int64),
            )
        )
        for s in some:
            past[s] += counts[s]
    return made


def opened(build: Build, kind: str) -> Session:
    graph, weights = graph_of(build)
    if kind == "reference":
        return reference.build(graph, {}).open(weights, {})
    return openvino.build(graph, {}).open(weights, {"threads": 1})


@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_the_definition(name: str) -> None:
    found, expected = (opened(CASES[name], kind) for kind in ("openvino", "reference"))
    assert found.state_bytes == expected.state_bytes > 0
    for session in (found, expected):
        session.allocate_cache(1, 5)
    # Twice: the second time, slots hold what the first left in them.
    for step in steps() + steps():
        made, wanted = np.array(found.run(step)), expected.run(step)
        np.testing.assert_allclose(made, wanted, atol=2e-5 * np.abs(wanted).max())


def test_a_missing_kernel_is_told_when_building(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddock.engines.openvino import recurrent

    monkeypatch.setitem(recurrent.KERNELS, "PagedNothing", ((-1, 2),))
    with pytest.raises(BuildError, match=r"does not have the kernel PagedNothing .*2026\.4"):
        openvino.build(graph_of(conv)[0], {})
    monkeypatch.delitem(recurrent.KERNELS, "PagedNothing")
    monkeypatch.setitem(recurrent.KERNELS, "PagedSelectiveSSM", ((-1, 2),))
    with pytest.raises(BuildError, match="does not have the kernel PagedSelectiveSSM"):
        openvino.build(graph_of(conv)[0], {})


def test_rates_of_each_number_in_wide_heads_are_refused() -> None:
    def wide(x: Tensor, w: Weights, step: tuple[Tensor, ...]) -> Tensor:
        b = F.reshape(F.linear(x, w("b", 8, CHANNELS)), 1, 8)
        heads = F.reshape(x, 4, 3)
        y = F.selective_scan(
            heads,
            dt=F.linear(x, w("dt", 4, CHANNELS)),
            a=w("a", 4, 8),
            b=b,
            c=b,
            d=w("d", 4),
            state=state("s", 4, 3, 8),
            step=step,
        )
        return F.reshape(y, CHANNELS)

    with pytest.raises(BuildError, match="where heads are of size 1 and of one group"):
        opened(wide, "openvino")
