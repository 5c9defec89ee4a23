"""The encoder loop: who shares a step, who waits, what happens when the engine fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import numpy as np
import pytest

from paddock.engines.protocol import StepInputs
from paddock.graph import Array
from paddock.runtime.encoders.encoder_loop import EncoderLimits, EncoderLoop
from paddock.runtime.errors import (
    LimitsError,
    LoopClosed,
    QueueFull,
    RequestError,
    RequestFailed,
    RequestTooLarge,
)

LIMITS = EncoderLimits(
    max_context=50, max_tokens_per_step=64, max_sequences=4, max_queued_sequences=6
)


class Echo:
    """A stand-in for an engine: a row is (token id, position, type, length of its sequence).

    It stops before each step until `gate` opens, so that tests say what waits together.
    """

    vocab_size, block_size, block_bytes, state_bytes = 4, 8, 64, 0

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.steps: list[StepInputs] = []
        self.running = threading.Event()
        self.failing: Exception | None = None
        self.blocks = 0
        self.closed = False

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        self.blocks = blocks

    def run(self, step: StepInputs) -> Array:
        self.steps.append(step)
        self.running.set()
        assert self.gate.wait(10)
        if self.failing is not None:
            raise self.failing
        assert step.token_types is not None
        assert (step.block_table < self.blocks).all()
        lengths = np.repeat(np.diff(step.sequence_starts), np.diff(step.sequence_starts))
        rows = np.stack([step.token_ids, step.positions, step.token_types, lengths], 1)
        return rows[step.logit_rows].astype(np.float32)

    def close(self) -> None:
        self.closed = True

    @property
    def lengths(self) -> list[list[int]]:
        """Of each step's sequences."""
        return [np.diff(step.sequence_starts).tolist() for step in self.steps]


@pytest.fixture
def session() -> Echo:
    return Echo()


@pytest.fixture
def loop(session: Echo) -> Iterator[EncoderLoop]:
    loop = EncoderLoop(session, LIMITS, vocab_size=1000)
    yield loop
    session.gate.set()
    loop.close(drain=False)
    assert session.closed


def test_every_sequence_gets_its_own_rows(loop: EncoderLoop, session: Echo) -> None:
    session.gate.set()
    first = loop.submit([5, 6, 7], [0, 0, 1])
    second = loop.submit([8, 9], reads="first")
    third = loop.submit([3, 4], reads="last")
    np.testing.assert_array_equal(first.result(10), [[5, 0, 0, 3], [6, 1, 0, 3], [7, 2, 1, 3]])
    np.testing.assert_array_equal(second.result(10), [[8, 0, 0, 2]])
    np.testing.assert_array_equal(third.result(10), [[4, 1, 0, 2]])


def test_a_step_has_sequences_of_like_length_and_the_oldest(
    loop: EncoderLoop, session: Echo
) -> None:
    loop.submit([1])  # runs alone, while the others gather
    assert session.running.wait(10)
    futures = [loop.submit([1] * n) for n in (20, 2, 19, 3, 21, 1)]
    session.gate.set()
    for future in futures:
        future.result(10)
    assert session.lengths == [[1], [20, 19, 21], [2, 3, 1]]


def test_a_sequence_beyond_the_budget_runs_alone(loop: EncoderLoop, session: Echo) -> None:
    session.gate.set()
    assert len(loop.submit([1] * 50).result(10)) == 50
    with pytest.raises(RequestTooLarge, match="51 tokens: expected 1 to 50"):
        loop.submit([1] * 51)
    with pytest.raises(RequestTooLarge, match="0 tokens"):
        loop.submit([])


def test_ids_outside_the_vocabulary_are_refused(loop: EncoderLoop) -> None:
    for ids in ([1000], [-1]):
        with pytest.raises(RequestError, match=f"token id {ids[0]} is outside the vocabulary"):
            loop.submit(ids)


def test_the_queue_has_a_bound_and_tells_when_there_is_room(
    loop: EncoderLoop, session: Echo
) -> None:
    loop.submit([1])
    assert session.running.wait(10)
    futures = [loop.submit([1]) for _ in range(LIMITS.max_queued_sequences)]
    departures = loop.departures
    with pytest.raises(QueueFull, match="6 sequences are waiting") as refused:
        loop.submit([1])
    assert refused.value.retry_after_s > 0
    session.gate.set()
    loop.wait_for_room(departures, 10)
    assert loop.departures > departures
    for future in futures:
        future.result(10)
    assert loop.stats().waiting == 0
    assert loop.stats().sequences == 7


def test_what_waits_can_be_cancelled(loop: EncoderLoop, session: Echo) -> None:
    loop.submit([1])
    assert session.running.wait(10)
    waiting, other = loop.submit([2]), loop.submit([3])
    assert waiting.cancel()
    session.gate.set()
    assert other.result(10)[0, 0] == 3
    with pytest.raises(CancelledError):
        waiting.result(10)
    assert [2] not in [step.token_ids.tolist() for step in session.steps]


def test_a_failed_step_fails_its_sequences_alone(loop: EncoderLoop, session: Echo) -> None:
    session.gate.set()
    session.failing = RuntimeError("out of luck")
    with pytest.raises(RequestFailed, match="a step of 1: out of luck"):
        loop.submit([1]).result(10)
    session.failing = None
    assert loop.submit([2]).result(10)[0, 0] == 2
    assert loop.stats().failed_steps == 1
    assert loop.alive


def test_closing_drains_or_cancels(session: Echo) -> None:
    loop = EncoderLoop(session, LIMITS, vocab_size=1000)
    running = loop.submit([1])
    assert session.running.wait(10)
    waiting = loop.submit([2])
    session.gate.set()
    loop.close()
    assert running.result(0)[0, 0] == 1
    assert waiting.result(0)[0, 0] == 2
    with pytest.raises(LoopClosed):
        loop.submit([1])

    session = Echo()
    loop = EncoderLoop(session, LIMITS, vocab_size=1000)
    loop.submit([1])
    assert session.running.wait(10)
    waiting = loop.submit([2])
    threading.Timer(0.05, session.gate.set).start()
    loop.close(drain=False)
    with pytest.raises(LoopClosed):
        waiting.result(0)


def test_many_threads(loop: EncoderLoop, session: Echo) -> None:
    session.gate.set()
    wrong: list[int] = []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            ids = random.integers(0, 1000, random.integers(1, 50)).tolist()
            while True:
                departures = loop.departures
                try:
                    found = loop.submit(ids).result(10)
                    break
                except QueueFull:
                    loop.wait_for_room(departures, 10)
            if found[:, 0].tolist() != ids:
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    stats = loop.stats()
    assert stats.sequences == 600
    assert stats.padded_tokens >= stats.tokens


def test_limits_are_positive() -> None:
    with pytest.raises(LimitsError, match=r"limits\.max_context must be positive"):
        EncoderLimits(max_context=0, max_tokens_per_step=1, max_sequences=1, max_queued_sequences=1)
