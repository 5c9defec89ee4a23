"""What `measure` reports is what a session of known speed does."""

import numpy as np
import pytest

from paddock.engines.protocol import StepInputs
from paddock.graph.dtype import Array
from paddock.runtime.bandwidth import measure_apart, read_bandwidth
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.measure import Percentiles, Workload, measure
from tests.runtime.harness import make_limits

STEP_S = 0.01
TOKEN_S = 0.001


class TimedSession:
    """Takes a hundredth of a second a step and a thousandth a token, on a clock of its own."""

    vocab_size = 50
    block_size = 4
    block_bytes = 64
    state_bytes = 0

    def __init__(self) -> None:
        self.now = 0.0
        self.prompts: list[tuple[int, ...]] = []

    def clock(self) -> float:
        return self.now

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        """There is none."""

    def run(self, step: StepInputs) -> Array:
        for past, tokens in zip(
            step.past_lengths,
            np.split(step.token_ids, step.sequence_starts[1:-1]),
            strict=True,
        ):
            if past == 0:
                self.prompts.append(tuple(tokens.tolist()))
        self.now += STEP_S + TOKEN_S * len(step.token_ids)
        return np.zeros((len(step.logit_rows), self.vocab_size), np.float32)

    def close(self) -> None:
        """There is nothing to give back."""


def loop_over(session: TimedSession) -> EngineLoop:
    limits = make_limits(max_tokens_per_step=64, cache_blocks=256)
    return EngineLoop(session, limits, clock=session.clock)


def test_one_sequence() -> None:
    session = TimedSession()
    with loop_over(session) as loop:
        found = measure(loop, session.vocab_size, Workload(1, 20, 10), rounds=2)
    first = STEP_S + 20 * TOKEN_S
    step = STEP_S + TOKEN_S
    assert found.prefill_tokens_per_s == pytest.approx(20 / first)
    assert found.decode_tokens_per_s == pytest.approx(1 / step)
    assert vars(found.to_first_token_s) == pytest.approx({"p50": first, "p90": first, "p99": first})
    assert found.between_tokens_s.p99 == pytest.approx(step)
    # Nine steps were timed, the first over 21 tokens of context, the last over 29.
    assert found.decode_context == pytest.approx(20 + 1 + 9 / 2)
    # Weights once a step, the cache of one sequence.
    assert found.decode_bytes_per_s(1000, 10) == pytest.approx((1000 + 25.5 * 10) / step)
    assert len(set(session.prompts)) == len(session.prompts) == 3  # and one that is not counted


def test_sequences_that_decode_together() -> None:
    session = TimedSession()
    with loop_over(session) as loop:
        found = measure(loop, session.vocab_size, Workload(4, 8, 24), rounds=3)
    step = STEP_S + 4 * TOKEN_S
    assert found.decode_tokens_per_s == pytest.approx(4 / step)
    assert found.between_tokens_s.p50 == pytest.approx(step)
    assert found.decode_bytes_per_s(1000, 0) == pytest.approx(1000 / step)


def test_percentiles_are_values_that_were_measured() -> None:
    assert Percentiles.of([5.0]) == Percentiles(5.0, 5.0, 5.0)
    assert Percentiles.of([float(n) for n in range(100, 0, -1)]) == Percentiles(50.0, 90.0, 99.0)


def test_bandwidth_is_of_this_machine() -> None:
    found = read_bandwidth(1, seconds=0.01, buffer_bytes=1 << 26)
    assert 1e8 < found < 1e12
    assert 1e8 < measure_apart(1) < 1e12
