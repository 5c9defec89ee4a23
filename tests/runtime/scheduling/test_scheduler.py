"""Who runs when: budgets, priorities, aging, preemption, shared prefixes."""

from __future__ import annotations

import time

import pytest

from paddock.runtime.scheduling.request import Request, State
from paddock.runtime.scheduling.scheduler import Decision
from tests.runtime.alone import run_alone_prompt_logprobs
from tests.runtime.harness import Harness, make_limits

LONG = [1, 2, 3] * 7  # 21 tokens: five full blocks of four and one token


def shares(decision: Decision) -> dict[int, list[int]]:
    """Tokens of each request in a step, in order."""
    counts: dict[int, list[int]] = {}
    for chunk in decision.chunks:
        counts.setdefault(chunk.sequence.request.number, []).append(chunk.tokens)
    return counts


def scheduled(harness: Harness) -> set[int]:
    return {chunk.sequence.request.number for chunk in harness.decisions[-1].chunks}


def go(harness: Harness, priority: int = 0) -> Request:
    """A short prompt that wants to go on for long."""
    return harness.submit([1, 2], ignore_eos=True, max_tokens=40, priority=priority)


def test_decode_tokens_and_prompt_chunks_share_a_step() -> None:
    harness = Harness(make_limits(max_tokens_per_step=10))
    go(harness)
    harness.step()
    harness.submit(LONG, max_tokens=1)
    harness.step()
    assert shares(harness.decisions[-1]) == {0: [1], 1: [9]}
    harness.step()
    assert shares(harness.decisions[-1]) == {0: [1], 1: [9]}
    harness.step()
    assert shares(harness.decisions[-1]) == {0: [1], 1: [3]}


def test_a_prompt_takes_no_more_than_its_chunk() -> None:
    harness = Harness(make_limits(prefill_chunk=5))
    harness.submit(LONG, max_tokens=1)
    harness.submit([5] * 12, max_tokens=1)
    harness.step()
    assert shares(harness.decisions[-1]) == {0: [5], 1: [5]}
    harness.run()


def test_only_rows_that_somebody_wants_have_logits() -> None:
    harness = Harness(make_limits(max_tokens_per_step=8))
    harness.submit(LONG, max_tokens=5, ignore_eos=True)
    harness.run()
    assert harness.session.logit_rows_made == 5
    harness.submit([7, 8, 9], max_tokens=1, prompt_logprobs=0)
    harness.run()
    assert harness.session.logit_rows_made == 5 + 3


def test_first_come_first_served_within_a_priority() -> None:
    harness = Harness(make_limits(max_sequences=1))
    order = [harness.submit([1, index], max_tokens=2, ignore_eos=True) for index in range(1, 6)]
    harness.run()
    starts = [request.first_scheduled for request in order]
    seen = [chunk.sequence.request.number for d in harness.decisions for chunk in d.chunks]
    assert list(dict.fromkeys(seen)) == [0, 1, 2, 3, 4]
    assert all(start is not None for start in starts)


def test_the_urgent_go_first() -> None:
    harness = Harness(make_limits(max_sequences=1))
    for priority in (0, 5, -5, 0):
        harness.submit([1, 2], max_tokens=1, priority=priority)
    harness.run()
    seen = [chunk.sequence.request.number for d in harness.decisions for chunk in d.chunks]
    assert seen == [2, 0, 3, 1]


def test_who_waits_long_enough_outranks_the_urgent() -> None:
    """A stream of urgent requests that would fill the engine for ever."""
    harness = Harness(make_limits(max_sequences=1, aging_s=10.0))
    patient = harness.submit([1, 2], max_tokens=3, priority=3, ignore_eos=True)
    while not patient.finished:
        assert harness.now < 50, "starved"
        harness.submit([1, 2], max_tokens=1, priority=0)
        harness.step()
        harness.now += 1
    assert harness.now > 30, "three levels of priority are worth thirty seconds"


def test_the_urgent_take_the_place_of_the_less_urgent() -> None:
    harness = Harness(make_limits(max_sequences=2))
    low = [go(harness, priority=5), go(harness, priority=4)]
    harness.step(3)
    urgent = go(harness, priority=0)
    harness.step()
    assert scheduled(harness) == {low[1].number, urgent.number}
    assert low[0].sequences[0].state is State.WAITING
    assert low[0].sequences[0].generated == 3, "what it made stays"
    harness.step(2)
    assert low[0].sequences[0].generated == 3
    harness.run()
    assert low[0].sequences[0].preemptions == 1
    assert low[0].sequences[0].generated == 40


def test_equals_do_not_take_each_others_place() -> None:
    harness = Harness(make_limits(max_sequences=1))
    go(harness)
    harness.step(2)
    go(harness)
    harness.step(5)
    assert harness.scheduler.counters.preemptions == 0
    assert scheduled(harness) == {0}


def test_the_urgent_do_not_preempt_in_vain() -> None:
    """Even without the less urgent it would not fit beside its equal."""
    harness = Harness(make_limits(cache_blocks=14, max_context=48))
    equal = harness.submit([1] * 30, ignore_eos=True, max_tokens=10)
    low = harness.submit([2] * 6, ignore_eos=True, max_tokens=8, priority=5)
    harness.step(3)
    harness.submit([3] * 30, max_tokens=2)
    harness.step()
    assert scheduled(harness) == {equal.number, low.number}
    harness.run()


def test_when_blocks_run_out_the_last_in_rank_gives_way() -> None:
    harness = Harness(make_limits(cache_blocks=8, max_context=32))
    requests = [go(harness, priority=priority) for priority in (0, 1, 0)]
    while not harness.scheduler.counters.preemptions:
        harness.step()
    assert requests[1].sequences[0].preemptions == 1, "the least urgent first"
    while harness.scheduler.counters.preemptions == 1:
        harness.step()
    assert requests[2].sequences[0].preemptions == 1, "of equals the youngest"
    harness.run()
    assert requests[0].sequences[0].preemptions == 0
    assert all(request.sequences[0].generated == 30 for request in requests)


def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    harness = Harness(make_limits(cache_blocks=12, max_context=48))
    go(harness)
    harness.step()
    large = harness.submit([2] * 44, max_tokens=1)
    small = [harness.submit([3, 3], max_tokens=1) for _ in range(3)]
    harness.step(3)
    assert large.sequences[0].state is State.WAITING
    assert all(request.first_scheduled is None for request in small)
    harness.run()


def test_equal_prompts_submitted_together_are_computed_once() -> None:
    harness = Harness(make_limits(max_sequences=4, max_tokens_per_step=8))
    for _ in range(4):
        harness.submit(LONG, max_tokens=1)
    harness.step()
    assert harness.scheduler.queued == 3
    harness.run()
    assert harness.session.tokens_run == len(LONG) + 3  # and the last token of each


def test_a_shared_beginning_is_computed_once() -> None:
    harness = Harness(make_limits(max_sequences=4))
    for last in range(3):
        harness.submit([*LONG[:9], *[last + 1] * 5], max_tokens=1)
    harness.run()
    assert harness.session.tokens_run == 14 + 2 * (14 - 8)


def test_where_layers_keep_a_state_no_prefix_is_reused_and_all_is_computed_from_the_start() -> None:
    """The session answers from the slot alone: a state begun behind a prefix would change it."""
    limits = make_limits(cache_blocks=18, max_context=40, prefill_chunk=5)
    expected = {}
    for keeps_state in (False, True):
        harness = Harness(limits, keeps_state=keeps_state)
        requests = [harness.submit(LONG, max_tokens=18, ignore_eos=True) for _ in range(3)]
        harness.run()
        counters = harness.scheduler.counters
        assert counters.preemptions
        assert (counters.prompt_tokens_hit == 0) == keeps_state
        expected[keeps_state] = [harness.result(r).sequences[0].token_ids for r in requests]
        if keeps_state:
            computed = [c.past for d in harness.decisions for c in d.chunks]
            assert computed.count(0) == len(requests) + counters.preemptions
    assert expected[True] == expected[False]


def test_parallel_sequences_share_the_prompt() -> None:
    harness = Harness(make_limits())
    request = harness.submit(LONG, n=4, temperature=1.0, seed=3, max_tokens=1)
    harness.run()
    assert harness.session.tokens_run == len(LONG) + 3
    tokens = [sequence.token_ids for sequence in harness.result(request).sequences]
    assert len(set(tokens)) > 1, "each has random numbers of its own"


def test_the_next_turn_of_a_chat_finds_the_last() -> None:
    harness = Harness(make_limits())
    first = harness.submit(LONG, max_tokens=10, ignore_eos=True)
    harness.run()
    history = first.sequences[0].token_ids.tolist()
    second = harness.submit([*history, 5, 6, 7], max_tokens=1)
    before = harness.session.tokens_run
    harness.run()
    assert second.prompt_tokens_cached == 28, "31 tokens; the last was never run"
    assert harness.session.tokens_run - before == len(history) + 3 - 28
    assert harness.result(second).prompt_tokens_cached == 28


def test_the_last_token_of_a_prompt_always_runs() -> None:
    harness = Harness(make_limits())
    for _ in range(2):
        request = harness.submit(LONG[:8], max_tokens=1)
        harness.run()
    assert request.prompt_tokens_cached == 4


def test_salts_keep_prefixes_apart() -> None:
    harness = Harness(make_limits())
    for salt, expected in (("a", 0), ("b", 0), ("a", 20), ("", 0)):
        request = harness.submit(LONG, max_tokens=1, salt=salt)
        harness.run()
        assert request.prompt_tokens_cached == expected


def test_who_followed_a_cancelled_prompt_computes_it() -> None:
    harness = Harness(make_limits(max_tokens_per_step=6, prefill_chunk=4))
    owner = harness.submit(LONG, max_tokens=1)
    followers = [harness.submit(LONG, max_tokens=1) for _ in range(3)]
    harness.step()
    assert [f.sequences[0].state for f in followers] == [State.FOLLOWING] * 3
    harness.cancel(followers[1])
    harness.scheduler.audit()
    harness.cancel(owner)
    harness.scheduler.audit()
    assert followers[0].sequences[0].state is State.WAITING
    harness.run()
    assert [len(harness.result(f).token_ids) for f in followers] == [1, 0, 1]


def test_nobody_follows_one_of_worse_rank() -> None:
    harness = Harness(make_limits(max_tokens_per_step=6, max_sequences=2))
    harness.submit(LONG, max_tokens=1, priority=5)
    harness.step()
    urgent = harness.submit(LONG, max_tokens=1)
    harness.step()
    assert urgent.sequences[0].state is State.RUNNING
    assert scheduled(harness) == {urgent.number}, "nor waits until its prompt is through"
    harness.run()


def test_prompt_logprobs_bypass_the_cache_and_keep_to_their_rows() -> None:
    harness = Harness(make_limits(max_prompt_logit_rows=4))
    harness.submit(LONG, max_tokens=1)
    harness.run()
    request = harness.submit(LONG, max_tokens=1, prompt_logprobs=1)
    harness.run()
    assert request.prompt_tokens_cached == 0
    logprobs = harness.result(request).prompt_logprobs
    assert logprobs is not None
    assert logprobs[0] is None
    assert [token.token_id for token in logprobs[1:] if token] == LONG[1:]
    assert len(harness.decisions) > 5, "four rows a step"


def test_prompt_logprobs_go_on_after_preemption_where_they_were() -> None:
    harness = Harness(make_limits(max_sequences=1, max_prompt_logit_rows=3))
    request = harness.submit(LONG, max_tokens=2, ignore_eos=True, prompt_logprobs=2, priority=5)
    harness.step(2)
    harness.submit([5, 6], max_tokens=1)
    harness.run()
    assert request.sequences[0].preemptions == 1
    logprobs = harness.result(request).prompt_logprobs
    assert list(logprobs or ()) == run_alone_prompt_logprobs(LONG, 2)
    assert harness.session.logit_rows_made == 20 + 2 + 1, "no row was made twice"


@pytest.mark.parametrize("finished_before", [0, 2000])
def test_a_step_does_not_look_at_the_queue_or_at_the_past(finished_before: int) -> None:
    harness = Harness(
        make_limits(max_queued_requests=10_000, max_queued_tokens=10**6, cache_blocks=16)
    )
    for index in range(finished_before):
        harness.cancel(harness.submit([1 + index % 9, 2], max_tokens=1))
    for _ in range(4):
        go(harness)
    harness.step(2)

    def seconds() -> float:
        times: list[float] = []
        for _ in range(50):
            began = time.perf_counter()
            harness.scheduler.schedule()
            times.append(time.perf_counter() - began)
        return min(times)

    alone = seconds()
    for _ in range(5000):
        harness.submit([3] * 30, max_tokens=1)
    assert seconds() < 3 * alone + 20e-6
