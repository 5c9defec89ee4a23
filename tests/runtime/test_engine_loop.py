"""The loop's thread: in from everywhere, out to everybody, and what happens when things fail."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paddock.engines.protocol import StepInputs
from paddock.graph.dtype import Array
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.errors import (
    LoopClosed,
    QueueFull,
    RequestError,
    RequestFailed,
    RequestTooLarge,
)
from paddock.runtime.handle import RequestHandle, Subscriber, tell_all
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.request import FinishReason, Request
from paddock.runtime.stats import StepReport
from tests.runtime.alone import run_alone
from tests.runtime.harness import make_limits
from tests.runtime.history_session import HistorySession
from tests.runtime.letter_tokenizer import VOCAB_SIZE, LetterTokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, ignore_eos=True)


class GatedSession(HistorySession):
    """Runs a step only while the gate is open, and says when one waits at it."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, block_size=4, limits=limits)
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Semaphore(0)
        self.threads: set[int] = set()

    def hold(self) -> None:
        """From now on no step is run."""
        self.gate.clear()
        while self.at_gate.acquire(blocking=False):
            pass

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        self.threads.add(threading.get_ident())
        super().allocate_cache(blocks, slots)

    def run(self, step: StepInputs) -> Array:
        self.threads.add(threading.get_ident())
        self.at_gate.release()
        assert self.gate.wait(20)
        return super().run(step)

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        super().close()


@pytest.fixture
def session() -> GatedSession:
    return GatedSession(make_limits())


@pytest.fixture
def loop(session: GatedSession) -> Iterator[EngineLoop]:
    assert session.limits is not None
    loop = EngineLoop(session, session.limits, tokenizer=LetterTokenizer())
    yield loop
    session.gate.set()
    loop.close(drain=False)
    assert session.closed
    loop._stepper.scheduler.audit()
    assert loop.stats().blocks_held == 0
    assert len(session.threads) == 1
    assert threading.get_ident() not in session.threads


def expected(prompt: str, params: SamplingParams, index: int = 0) -> str:
    return run_alone(LetterTokenizer().encode(prompt), params, index, 64).text


# --- results ----------------------------------------------------------------------------------


def test_increments_and_result(loop: EngineLoop) -> None:
    handle = loop.submit("abcabc", GREEDY, request_id="mine")
    text = "".join(increment.text for increment in handle)
    result = handle.result()
    assert text == result.text == expected("abcabc", GREEDY)
    assert result.request_id == handle.request_id == "mine"
    assert len(result.token_ids) == 12
    assert handle.done
    assert handle.finished
    assert list(handle) == []
    times = result.timing
    assert times.first_scheduled is not None
    assert times.first_token is not None
    assert times.arrival <= times.first_scheduled <= times.first_token <= times.finished
    assert list(times.token_times[0]) == sorted(times.token_times[0])
    assert times.queued_s is not None
    assert times.to_first_token_s is not None


def test_a_slow_reader_gets_larger_increments(loop: EngineLoop) -> None:
    handle = loop.submit("abc", GREEDY)
    while not handle.done:
        time.sleep(0.001)
    time.sleep(0.02)
    increments = list(handle)
    assert len(increments) == 1
    assert len(increments[0].token_ids) == 12
    assert increments[0].finish_reason is FinishReason.LENGTH


def test_logprobs_come_with_their_tokens(loop: EngineLoop) -> None:
    params = SamplingParams(max_tokens=5, logprobs=2, prompt_logprobs=1, seed=1, ignore_eos=True)
    handle = loop.submit("abc", params)
    increments = list(handle)
    for increment in increments:
        assert increment.logprobs is not None
        assert tuple(token.token_id for token in increment.logprobs) == increment.token_ids
    assert increments[0].prompt_logprobs is not None
    assert all(increment.prompt_logprobs is None for increment in increments[1:])
    assert handle.result().prompt_logprobs == increments[0].prompt_logprobs
    plain = loop.submit("abc", GREEDY).result()
    assert plain.sequences[0].logprobs is None
    assert plain.prompt_logprobs is None


def test_from_many_threads_at_once(loop: EngineLoop) -> None:
    prompts = ["abc"[: 1 + index % 3] * (1 + index % 5) for index in range(40)]
    texts: dict[int, str] = {}

    def ask(index: int) -> None:
        params = SamplingParams(seed=index, max_tokens=10)
        texts[index] = loop.submit(prompts[index], params).result(timeout_s=30).text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, prompt in enumerate(prompts):
        assert texts[index] == expected(prompt, SamplingParams(seed=index, max_tokens=10))


def test_from_coroutines(loop: EngineLoop) -> None:
    async def ask(index: int) -> str:
        params = SamplingParams(seed=index, max_tokens=10, n=2)
        handle = loop.submit("ab" * (1 + index % 4), params)
        if index % 2:
            result = await handle.aresult()
            return "|".join(sequence.text for sequence in result.sequences)
        texts = ["", ""]
        async for increment in handle:
            texts[increment.index] += increment.text
        return "|".join(texts)

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(index) for index in range(30)))

    for index, text in enumerate(asyncio.run(ask_all())):
        params = SamplingParams(seed=index, max_tokens=10, n=2)
        prompt = "ab" * (1 + index % 4)
        assert text == "|".join(expected(prompt, params, which) for which in range(2))


def test_a_closed_event_loop_stops_nobody(loop: EngineLoop, session: GatedSession) -> None:
    session.hold()
    handle = loop.submit("abc", GREEDY)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle.aresult(), 0.02)

    asyncio.run(give_up())
    closed = asyncio.new_event_loop()
    handle.subscribe(Subscriber(closed, lambda: pytest.fail("nobody is there")))
    closed.close()
    session.gate.set()
    assert handle.result(timeout_s=60).text == expected("abc", GREEDY)


def test_everybody_is_told_before_anybody_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    happened: list[str] = []

    def subscriber(name: str) -> Callable[[], Callable[[], None] | None]:
        def tell() -> Callable[[], None] | None:
            happened.append(f"{name} is told")
            return None if name == "quiet" else lambda: happened.append(f"{name} goes on")

        return tell

    def broken() -> None:
        raise RuntimeError("mine")

    tell_all([subscriber("first"), broken, lambda: broken, subscriber("quiet"), subscriber("last")])
    assert happened == [
        *("first is told", "quiet is told", "last is told"),
        *("first goes on", "last goes on"),
    ]
    assert caplog.text.count("RuntimeError: mine") == 2


def test_token_ids_need_no_tokenizer() -> None:
    limits = make_limits()
    session = HistorySession(vocab_size=VOCAB_SIZE, block_size=4, limits=limits)
    with EngineLoop(session, limits) as loop:
        result = loop.submit([1, 2, 3], GREEDY).result()
        assert result.text == ""
        assert list(result.token_ids) == run_alone([1, 2, 3], GREEDY, 0, 64).token_ids
        for params in (SamplingParams(stop=("a",)), SamplingParams(bad_words=("a",))):
            with pytest.raises(RequestError, match="no tokenizer"):
                loop.submit([1], params)
        with pytest.raises(RequestError, match="no tokenizer"):
            loop.submit("abc")


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ("", {}, "the prompt is empty"),
        ([1, VOCAB_SIZE], {}, f"token id {VOCAB_SIZE}, outside the vocabulary of {VOCAB_SIZE}"),
        ([1, -1], {}, "token id -1, outside"),
        ([[1, 2]], {}, "no list of token ids"),
        ([1.5], {}, "no list of token ids"),
        ([True], {}, "no list of token ids"),
        ([1, [2]], {}, "no list of token ids"),
        ([2**70], {}, "no list of token ids"),
        ([1], {"priority": 101}, "priority: expected -100"),
        ([1], {"deadline_s": -1.0}, "deadline_s: expected seconds"),
        ([1], {"deadline_s": float("nan")}, "deadline_s: expected seconds"),
        ([1], {"params": SamplingParams(logit_bias={99: 1.0})}, "logit_bias: token id 99"),
    ],
)
def test_what_is_wrong_is_refused_at_once(
    loop: EngineLoop, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        loop.submit(prompt, **options)
    assert loop.stats().queued_requests == 0


def test_what_can_never_fit_is_refused_with_the_numbers(loop: EngineLoop) -> None:
    with pytest.raises(
        RequestTooLarge, match=r"prompt has 64 tokens.*one to make.*max_context \(64\)"
    ):
        loop.submit([1] * 64)
    with pytest.raises(RequestTooLarge, match=r"60 tokens.*min_tokens of 5.*\(64\)"):
        loop.submit([1] * 60, SamplingParams(min_tokens=5))
    assert len(loop.submit([1] * 60, LONG).result().token_ids) == 4


def test_what_the_cache_cannot_hold_is_refused_with_the_numbers() -> None:
    limits = make_limits(cache_blocks=3)
    session = HistorySession(vocab_size=VOCAB_SIZE, block_size=4, limits=limits)
    with EngineLoop(session, limits) as loop:
        message = r"12 tokens that limits\.cache_blocks \(3\) blocks of 4 hold"
        with pytest.raises(RequestTooLarge, match=message):
            loop.submit([1] * 12)
        assert len(loop.submit([1] * 11, LONG).result().token_ids) == 1


def test_a_full_queue_refuses_and_says_when_to_come_again(session: GatedSession) -> None:
    limits = make_limits(max_queued_requests=3, max_queued_tokens=64, max_sequences=1)
    session.limits = limits
    with EngineLoop(session, limits, tokenizer=LetterTokenizer()) as loop:
        session.hold()
        running = loop.submit([1], GREEDY)
        assert session.at_gate.acquire(timeout=60)
        waiting = [loop.submit([1] * 20, GREEDY) for _ in range(3)]
        with pytest.raises(QueueFull, match="3 requests are waiting") as full:
            loop.submit([1])
        assert full.value.retry_after_s > 0
        assert loop.stats().queued_tokens == 60
        waiting[2].cancel()
        session.gate.set()
        running.result()
        for handle in waiting:
            handle.result()
        assert loop.stats().queued_requests == 0
        session.hold()
        first = loop.submit([2], GREEDY)
        assert session.at_gate.acquire(timeout=60)
        waiting = [loop.submit([1] * 50, GREEDY)]
        with pytest.raises(QueueFull, match=r"50 prompt tokens are waiting, 15 more"):
            loop.submit([1] * 15)
        departures = loop.departures
        session.gate.set()
        loop.wait_for_room(departures, timeout_s=60)
        assert loop.departures > departures
        first.result()
        waiting[0].result()


# --- cancelling, deadlines ----------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_cancelling_while_it_runs_and_while_it_waits(session: GatedSession) -> None:
    limits = make_limits(max_sequences=1)
    session.limits = limits
    with EngineLoop(session, limits, tokenizer=LetterTokenizer()) as loop:
        session.hold()
        running, waiting = loop.submit("abc", LONG), loop.submit("abc", LONG)
        assert session.at_gate.acquire(timeout=60)
        running.cancel()
        waiting.cancel()
        waiting.cancel()
        session.gate.set()
        for handle, most in ((running, 1), (waiting, 0)):
            result = handle.result(timeout_s=60)
            assert result.sequences[0].finish_reason is FinishReason.CANCELLED
            assert len(result.token_ids) <= most, "within one step"
        assert waiting.result().timing.first_scheduled is None
        wait_until(lambda: loop.stats().blocks_held == 0)
        running.cancel()  # after its end: nothing happens
        assert loop.submit("abc", GREEDY).result().text == expected("abc", GREEDY)


def test_leaving_the_handle_cancels(loop: EngineLoop, session: GatedSession) -> None:
    session.hold()
    with loop.submit("abc", LONG) as handle:
        assert session.at_gate.acquire(timeout=60)
    session.gate.set()
    result = handle.result(timeout_s=60)
    assert result.sequences[0].finish_reason is FinishReason.CANCELLED
    assert len(result.token_ids) <= 1


def test_deadlines_end_the_running_and_the_waiting(session: GatedSession) -> None:
    limits = make_limits(max_sequences=1)
    session.limits = limits
    now = [100.0]
    loop = EngineLoop(session, limits, tokenizer=LetterTokenizer(), clock=lambda: now[0])
    with loop:
        session.hold()
        running = loop.submit("abc", LONG, deadline_s=5)
        waiting = loop.submit("abc", LONG, deadline_s=5)
        unhurried = loop.submit("abc", GREEDY, deadline_s=1000)
        assert session.at_gate.acquire(timeout=60)
        now[0] = 105.0
        session.gate.set()
        for handle, count in ((running, 1), (waiting, 0)):
            result = handle.result(timeout_s=60)
            assert result.sequences[0].finish_reason is FinishReason.DEADLINE
            assert len(result.token_ids) == count
        assert unhurried.result(timeout_s=60).text == expected("abc", GREEDY)


def test_a_timeout_of_the_reader_ends_nothing(loop: EngineLoop, session: GatedSession) -> None:
    session.hold()
    handle = loop.submit("abc", GREEDY)
    with pytest.raises(TimeoutError, match=r"no news in 0\.01 s"):
        handle.next(timeout_s=0.01)
    with pytest.raises(TimeoutError):
        handle.result(timeout_s=0.01)
    session.gate.set()
    assert handle.result().text == expected("abc", GREEDY)


# --- failures ---------------------------------------------------------------------------------


def test_an_engine_error_ends_the_requests_of_its_step_alone(session: GatedSession) -> None:
    limits = make_limits(max_sequences=2)
    session.limits = limits
    with EngineLoop(session, limits, tokenizer=LetterTokenizer()) as loop:
        session.hold()
        doomed = loop.submit("abc", SamplingParams(n=2, max_tokens=20, ignore_eos=True))
        assert session.at_gate.acquire(timeout=60)
        spared = loop.submit("abc" * 4, GREEDY)
        session.fail_next = RuntimeError("the engine has hiccups")
        session.gate.set()
        increments = [doomed.next() for _ in range(2)]
        assert [i.finish_reason for i in increments if i] == [FinishReason.ERROR] * 2
        with pytest.raises(RequestFailed, match="the engine has hiccups") as failed:
            next(doomed)
        assert isinstance(failed.value.__cause__, RuntimeError)
        with pytest.raises(RequestFailed):
            doomed.result()
        assert spared.result(timeout_s=60).text == expected("abc" * 4, GREEDY)
        stats = loop.stats()
        assert stats.failed_steps == 1
        assert stats.blocks_held == 0
        loop._stepper.scheduler.audit()
        assert loop.submit("abc", GREEDY).result().text == expected("abc", GREEDY)


def test_an_engine_error_reaches_coroutines(loop: EngineLoop, session: GatedSession) -> None:
    async def ask() -> None:
        session.fail_next = RuntimeError("hiccups")
        with pytest.raises(RequestFailed, match="hiccups"):
            await loop.submit("abc", GREEDY).aresult()

    asyncio.run(ask())


def test_damaged_logits_end_their_own_request_alone(
    loop: EngineLoop, session: GatedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session.run

    def damaging(step: StepInputs) -> Array:
        logits = run(step)
        for row, token in enumerate(step.logit_rows):
            if step.token_ids[token] == 15:
                logits[row] = float("nan")
        return logits

    monkeypatch.setattr(session, "run", damaging)
    session.hold()
    first = loop.submit("abc", GREEDY)
    assert session.at_gate.acquire(timeout=60)
    broken = loop.submit("ab!", GREEDY)
    prompt = loop.submit("a!b", SamplingParams(prompt_logprobs=0, max_tokens=2))
    session.gate.set()
    for handle in (broken, prompt):
        with pytest.raises(RequestFailed, match="NaN"):
            handle.result(timeout_s=60)
    if 15 not in first.result(timeout_s=60).token_ids[:-1]:
        assert first.result().text == expected("abc", GREEDY)
    assert loop.stats().failed_steps == 0


class BrokenTokenizer(LetterTokenizer):
    def incremental(self, *_: Any, **__: Any) -> Any:
        raise ValueError("no such merge")


def test_a_tokenizer_error_ends_its_own_request_alone() -> None:
    limits = make_limits()
    session = HistorySession(vocab_size=VOCAB_SIZE, block_size=4, limits=limits)
    with EngineLoop(session, limits, tokenizer=BrokenTokenizer()) as loop:
        in_loop = loop.submit("abc", SamplingParams(stop=("zz",), max_tokens=3, ignore_eos=True))
        with pytest.raises(RequestFailed, match="no such merge"):
            in_loop.result(timeout_s=60)
        in_handle = loop.submit("abc", GREEDY)
        with pytest.raises(ValueError, match="no such merge"):
            in_handle.result(timeout_s=60)
        wait_until(lambda: loop.stats().running == 0)
        assert loop.alive
        assert loop.stats().failed_steps == 0


def test_a_bug_in_the_scheduler_leaves_nobody_waiting(
    session: GatedSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.limits is not None
    loop = EngineLoop(session, session.limits, tokenizer=LetterTokenizer())
    session.hold()
    handles = [loop.submit("abc", LONG) for _ in range(9)]
    assert session.at_gate.acquire(timeout=60)

    def schedule() -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(loop._stepper.scheduler, "schedule", schedule)
    session.gate.set()
    with caplog.at_level(logging.CRITICAL):
        for handle in handles:
            with pytest.raises(RequestFailed, match="a bug"):
                handle.result(timeout_s=60)
    with pytest.raises(LoopClosed, match="has stopped: a bug"):
        loop.submit("abc")
    assert not loop.alive
    assert session.closed
    loop.close()


def test_a_cache_that_cannot_be_had_is_told_at_once() -> None:
    class Small(HistorySession):
        def allocate_cache(self, blocks: int, slots: int = 1) -> None:
            raise MemoryError(f"no room for {blocks} blocks")

    with pytest.raises(MemoryError, match="no room for 64 blocks"):
        EngineLoop(Small(vocab_size=VOCAB_SIZE, block_size=4), make_limits())


# --- closing ----------------------------------------------------------------------------------


def test_closing_finishes_what_was_asked(session: GatedSession) -> None:
    assert session.limits is not None
    loop = EngineLoop(session, session.limits, tokenizer=LetterTokenizer())
    handles = [loop.submit("ab" * (1 + index % 3), GREEDY) for index in range(12)]
    loop.close()
    assert session.closed
    for handle in handles:
        assert handle.result(timeout_s=0).sequences[0].finish_reason is FinishReason.LENGTH
    with pytest.raises(LoopClosed):
        loop.submit("abc")
    loop.close()


def test_a_request_that_comes_while_the_loop_ends_is_refused(
    session: GatedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passed the queue's door just before that was closed; nobody would ever run it."""
    assert session.limits is not None
    loop = EngineLoop(session, session.limits, tokenizer=LetterTokenizer())
    loop.close()
    monkeypatch.setattr(loop._admission, "enter", lambda request: None)
    with pytest.raises(LoopClosed):
        loop.submit("abc")


@pytest.mark.parametrize("options", [{"drain": False}, {"timeout_s": 0.05}])
def test_closing_cancels_what_may_not_be_finished(
    session: GatedSession, options: dict[str, Any]
) -> None:
    assert session.limits is not None
    loop = EngineLoop(session, session.limits, tokenizer=LetterTokenizer())
    session.hold()
    handles = [loop.submit("abc", LONG) for _ in range(9)]
    assert session.at_gate.acquire(timeout=60)
    threading.Timer(0.2, session.gate.set).start()
    loop.close(**options)
    assert session.closed
    reasons = {handle.result(timeout_s=0).sequences[0].finish_reason for handle in handles}
    assert reasons == {FinishReason.CANCELLED}


def test_an_error_in_the_with_block_does_not_wait_for_long_texts(session: GatedSession) -> None:
    assert session.limits is not None
    handles: list[RequestHandle] = []

    def interrupted(limits: Limits) -> None:
        with EngineLoop(session, limits, tokenizer=LetterTokenizer()) as loop:
            session.hold()
            handles.append(loop.submit("abc", LONG))
            threading.Timer(0.05, session.gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(session.limits)
    assert handles[0].result(timeout_s=0).sequences[0].finish_reason is FinishReason.CANCELLED


PROGRAM = """
import os, signal, sys, threading, time
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.sampling.sampling_params import SamplingParams
from tests.runtime.harness import make_limits
from tests.runtime.history_session import HistorySession

class Slow(HistorySession):
    def run(self, step):
        time.sleep(0.01)
        return super().run(step)
    def close(self):
        print("closed", flush=True)
        super().close()

limits = make_limits(max_context=1_000_000, cache_blocks=250_000, max_queued_tokens=1_000_000)
loop = EngineLoop(Slow(vocab_size=18, block_size=4), limits)
handle = loop.submit([1, 2], SamplingParams(ignore_eos=True))
{then}
"""


@pytest.mark.parametrize(
    ("then", "returncode"),
    [
        ("sys.exit(3)", 3),
        (
            "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
            "try: handle.result()\n"
            "except KeyboardInterrupt: sys.exit(4)",
            4,
        ),
        (
            "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
            "try: loop.close()\n"
            "except KeyboardInterrupt: sys.exit(5)",
            5,
        ),
    ],
)
def test_a_program_ends_whatever_the_loop_is_doing(then: str, returncode: int) -> None:
    """Without closing it, or by Ctrl-C: at once, with the session closed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(then=then)],
        capture_output=True,
        text=True,
        timeout=180,  # the loop alone would go on for hours
        check=False,
    )
    assert (done.returncode, done.stdout) == (returncode, "closed\n"), done.stderr


# --- what it says, what it costs ----------------------------------------------------------------


class Remembering:
    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.finished: list[Request] = []

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_finish(self, request: Request) -> None:
        self.finished.append(request)


class Failing(Remembering):
    def on_step(self, report: StepReport) -> None:
        raise ValueError("a listener's bug")


def test_listeners_and_stats(loop: EngineLoop, caplog: pytest.LogCaptureFixture) -> None:
    remembering = Remembering()
    loop.add_listener(Failing())
    loop.add_listener(remembering)
    with caplog.at_level(logging.CRITICAL):
        for _ in range(2):
            loop.submit("abcabcabc", GREEDY).result()
        wait_until(lambda: len(remembering.finished) == 2)
    stats = loop.stats()
    wait_until(lambda: len(remembering.steps) == loop.stats().steps)
    assert stats.generated_tokens == sum(report.sampled for report in remembering.steps) == 24
    assert sum(report.tokens for report in remembering.steps) == 9 + 11 + 1 + 11
    assert all(report.run_s >= 0 and report.overhead_s > 0 for report in remembering.steps)
    assert (stats.running, stats.waiting, stats.requests_finished) == (0, 0, 2)
    assert (stats.prompt_tokens, stats.prompt_tokens_hit) == (18, 8)
    assert stats.prefix_hit_rate == 8 / 18
    assert stats.cache_use == 0
    assert stats.tokens_per_s > 0


def test_a_stall_is_seen(loop: EngineLoop, session: GatedSession) -> None:
    assert loop.stalled_s == 0
    session.hold()
    handle = loop.submit("abc", GREEDY)
    wait_until(lambda: loop.stalled_s > 0.05)
    session.gate.set()
    handle.result()
    wait_until(lambda: loop.stalled_s == 0)


def test_an_idle_loop_sleeps(loop: EngineLoop) -> None:
    loop.submit("abc", GREEDY).result()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


def test_waking_takes_microseconds(loop: EngineLoop) -> None:
    waits: list[float] = []
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    for _ in range(30):
        time.sleep(0.005)
        result = loop.submit("abc", params).result()
        assert result.timing.queued_s is not None
        waits.append(result.timing.queued_s)
    assert min(waits) < 5e-3  # a loop that looked now and then would take tens of them
