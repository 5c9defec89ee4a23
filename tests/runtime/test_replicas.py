"""Who takes which request, and several loops behind one way in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.engines.protocol import SessionLost, StepInputs
from paddock.graph.dtype import Array
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.errors import LoopClosed, QueueFull, RequestError, RequestFailed
from paddock.runtime.generate import generate
from paddock.runtime.replicas import Replicas
from paddock.runtime.routing import EXCESS, Router
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.request import Request
from paddock.runtime.server.health import health_of
from paddock.runtime.stats import StepReport
from tests.runtime.alone import run_alone
from tests.runtime.harness import make_limits
from tests.runtime.history_session import HistorySession
from tests.runtime.letter_tokenizer import VOCAB_SIZE, LetterTokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
BLOCK = 4

# --- the router ---------------------------------------------------------------------------------

prompts = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=4)


def chained(blocks: list[bytes]) -> list[bytes]:
    """Digests of a prompt's blocks: each stands for all up to it."""
    return [b"".join(blocks[: n + 1]) for n in range(len(blocks))]


@given(
    replicas=st.integers(1, 5),
    asked=st.lists(st.tuples(prompts, st.integers(1, 4), st.booleans()), max_size=60),
    data=st.data(),
)
def test_the_router_bounds_load_and_keeps_prefixes(
    replicas: int, asked: list[tuple[list[bytes], int, bool]], data: st.DataObject
) -> None:
    router = Router(replicas, remembered=1000)
    running: list[tuple[int, int]] = []
    seen: list[set[bytes]] = [set() for _ in range(replicas)]
    for blocks, sequences, one_ends in asked:
        digests = chained(blocks)
        among = data.draw(st.sets(st.integers(0, replicas - 1), min_size=1))
        loads = {r: sum(n for replica, n in running if replica == r) for r in among}
        assert {r: router.load[r] for r in among} == loads

        chosen = router.choose(digests, sequences, among)
        assert chosen in among
        total = sum(loads.values()) + sequences
        bound = max(ceil(EXCESS * total / len(among)), min(loads.values()) + sequences)
        assert loads[chosen] + sequences <= bound
        known = {r: sum(digest in seen[r] for digest in digests) for r in among}
        for other in among:
            if loads[other] + sequences <= bound:  # it might have taken it
                assert (known[chosen], -loads[chosen]) >= (known[other], -loads[other])

        router.give(chosen, sequences)
        router.learn(chosen, digests)
        running.append((chosen, sequences))
        seen[chosen] |= set(digests)
        if one_ends:
            ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
            router.end(*ended)


def test_the_router_forgets_what_was_not_asked_for_longest() -> None:
    router = Router(2, remembered=2)
    for replica, digest in ((1, b"old"), (1, b"used"), (1, b"used"), (1, b"new")):
        router.learn(replica, [digest])
    # One each was given; then whoever knows the prefix is asked, where somebody does.
    router.give(0, 1)
    router.give(1, 1)
    assert router.choose([b"used"], 1, [0, 1]) == 1
    assert router.choose([b"new"], 1, [0, 1]) == 1
    assert router.choose([b"old"], 1, [0, 1]) == 0


# --- loops behind it ----------------------------------------------------------------------------


class LosableSession(HistorySession):
    """Holds its steps while it is told to, and ends for good when it is lost."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, block_size=BLOCK, limits=limits)
        self.gate = threading.Event()
        self.gate.set()
        self.lost = False

    def run(self, step: StepInputs) -> Array:
        assert self.gate.wait(20)
        if self.lost:
            raise SessionLost("rank 1 on hostB (process 7) has died after step 3")
        return super().run(step)


Make = Callable[..., tuple[Replicas, list[LosableSession]]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[tuple[Replicas, list[LosableSession]]] = []

    def start(replicas: int = 2, **changed: int) -> tuple[Replicas, list[LosableSession]]:
        limits = make_limits(**changed)
        sessions = [LosableSession(limits) for _ in range(replicas)]
        loops = [EngineLoop(one, limits, tokenizer=LetterTokenizer()) for one in sessions]
        made.append((Replicas(loops, BLOCK, tokenizer=LetterTokenizer()), sessions))
        return made[-1]

    yield start
    for both, sessions in made:
        for session in sessions:
            session.gate.set()
        both.close(drain=False)
        assert all(session.closed for session in sessions)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_texts_are_those_of_one_loop_and_all_replicas_work(make: Make) -> None:
    both, sessions = make()
    asked = [first + rest for first in "abc ?!" for rest in ("abc", "bcabca")]
    results = generate(both, asked, GREEDY)
    for prompt, result in zip(asked, results, strict=True):
        alone = run_alone(LetterTokenizer().encode(prompt), GREEDY, 0, 64)
        assert result.sequences[0].text == alone.text
    assert all(session.steps > 0 for session in sessions)
    now = both.stats()
    assert now.requests_finished == len(asked)
    assert now.generated_tokens == 12 * len(asked)
    assert now.steps == sum(session.steps for session in sessions)
    assert now.blocks == both.limits.cache_blocks


def test_a_prefix_finds_its_replica_again(make: Make) -> None:
    both, _ = make()
    prefixes = ["abcabcab", "bbbbcccc", "cacacaca", "aaaabbbb"]
    for prompt in prefixes:
        both.submit(prompt + "a", GREEDY).result()
    for ending in ("bb", "cab", "c"):
        for prompt in prefixes:
            result = both.submit(prompt + ending, GREEDY).result()
            assert result.prompt_tokens_cached == len(prompt)
    asked = [one.requests_finished for one in both.stats_of_each()]
    assert asked == [8, 8]


def test_salts_are_not_routed_together(make: Make) -> None:
    """What one tenant asks does not decide where another's request goes, nor what it finds."""
    both, _ = make()
    both.submit("abcabcab", GREEDY, cache_salt="one").result()
    other = both.submit("abcabcabc", GREEDY, cache_salt="two").result()
    assert other.prompt_tokens_cached == 0
    assert [one.requests_finished for one in both.stats_of_each()] == [1, 1]


def test_a_busy_replica_is_passed_over(make: Make) -> None:
    both, sessions = make()
    both.submit("abcabcab", GREEDY).result()
    for session in sessions:
        session.gate.clear()
    handles = [both.submit("abcabcab", GREEDY) for _ in range(8)]
    loads = both._router.load
    assert sum(loads) == 8
    assert max(loads) <= 5  # 1.25 of an equal share
    for session in sessions:
        session.gate.set()
    assert len({handle.result().sequences[0].text for handle in handles}) == 1
    wait_until(lambda: both._router.load == [0, 0])


def test_a_lost_replica_ends_its_own_and_the_others_go_on(make: Make) -> None:
    both, sessions = make()
    for session in sessions:
        session.gate.clear()
    handles = [both.submit(text, GREEDY) for text in ("aaaa", "bbbb", "cccc", "abab")]
    assert both._router.load == [2, 2]
    assert health_of(both, 30).status == "ok"
    sessions[1].lost = True
    for session in sessions:
        session.gate.set()
    failed = 0
    for handle in handles:
        handle_failed = False
        try:
            handle.result(20)
        except RequestFailed as error:
            handle_failed = str(error).endswith("rank 1 on hostB (process 7) has died after step 3")
        failed += handle_failed
    assert failed == 2
    wait_until(lambda: both._router.load == [0, 0])
    wait_until(lambda: not both._loops[1].alive)

    found = health_of(both, 30)
    assert found.status == "degraded"
    assert found.message == (
        "replica 1 of 2 has stopped: rank 1 on hostB (process 7) has died after step 3"
    )
    assert both.alive
    for text in ("bbbbb", "aaaaa", "ccc"):  # the first would be the lost one's
        assert both.submit(text, GREEDY).result(20).sequences[0].text

    sessions[0].lost = True
    with pytest.raises(RequestFailed):
        both.submit("abc", GREEDY).result(20)
    wait_until(lambda: not both.alive)
    assert health_of(both, 30).status == "stopped"
    with pytest.raises(LoopClosed, match="no replica is left: rank 1 on hostB"):
        both.submit("abc", GREEDY)


def test_a_full_queue_sends_to_the_other_and_then_says_so(make: Make) -> None:
    both, sessions = make(max_queued_requests=1, max_sequences=1, max_tokens_per_step=8)
    for session in sessions:
        session.gate.clear()
    taken = [both.submit("ab", GREEDY) for _ in range(2)]
    wait_until(lambda: both.stats().running == 2)
    taken += [both.submit("ab", GREEDY) for _ in range(2)]  # one waits in each
    with pytest.raises(QueueFull) as refused:
        both.submit("ab", GREEDY)
    assert refused.value.retry_after_s > 0
    assert sum(both._router.load) == 4
    for session in sessions:
        threading.Timer(0.05, session.gate.set).start()
    both.wait_for_room(both.departures, 20)
    for handle in taken:
        handle.result(20)


def test_what_is_wrong_in_a_request_is_said_and_leaves_no_load(make: Make) -> None:
    both, _ = make()
    wrong: list[tuple[object, str]] = [
        ([], "empty"),
        ([VOCAB_SIZE], "outside the vocabulary"),
        (["a"], "no list of token ids"),
        ([[1], [2]], "no list of token ids"),
        ([2**70], "no list of token ids|outside the vocabulary"),
    ]
    for prompt, message in wrong:
        with pytest.raises(RequestError, match=message):
            both.submit(prompt, GREEDY)  # type: ignore[arg-type]
    assert both._router.load == [0, 0]


def test_a_listener_is_told_of_all_by_one_at_a_time(make: Make) -> None:
    both, sessions = make(4)
    inside = threading.Lock()
    told: list[str] = []

    class Telling:
        def on_step(self, report: StepReport) -> None:
            assert inside.acquire(blocking=False)
            time.sleep(0.001)
            inside.release()
            told.append("step")

        def on_finish(self, request: Request) -> None:
            assert inside.acquire(blocking=False)
            inside.release()
            told.append("finish")

    both.add_listener(Telling())
    generate(both, ["abc", "bca", "cab", "aaa", "bbb", "ccc"], GREEDY)
    wait_until(lambda: told.count("finish") == 6)
    wait_until(lambda: told.count("step") == sum(session.steps for session in sessions))


def test_closing_drains_all(make: Make) -> None:
    both, _ = make()
    handles = [both.submit(text, GREEDY) for text in ("abc", "bca", "cab")]
    both.close()
    assert [len(handle.result().sequences[0].token_ids) for handle in handles] == [12] * 3
    assert not both.ailments
    with pytest.raises(LoopClosed, match="closed"):
        both.submit("abc", GREEDY)
