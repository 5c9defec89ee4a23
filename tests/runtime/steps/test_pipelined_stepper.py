"""Steps of different sequences in flight at once; test_workloads.py has the random workloads."""

from __future__ import annotations

from typing import Any

import pytest

from paddock.engines.protocol import SessionLost
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.errors import RequestFailed
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.request import FinishReason
from paddock.runtime.scheduling.scheduler import Chunk
from paddock.runtime.steps.pipelined_stepper import PipelinedStepper
from tests.runtime.alone import run_alone
from tests.runtime.harness import Harness, make_limits
from tests.runtime.history_session import HistorySession
from tests.runtime.letter_tokenizer import VOCAB_SIZE
from tests.runtime.staged_session import StagedSession

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


def staged(harness: Harness) -> StagedSession:
    session = harness.stepper._session
    assert isinstance(session, StagedSession)
    return session


@pytest.mark.parametrize("stages", [2, 3])
def test_decoding_sequences_are_dealt_out_so_that_every_stage_works(stages: int) -> None:
    harness = Harness(make_limits(max_sequences=6), stages=stages)
    for first in range(1, 7):
        harness.submit([first, 2], max_tokens=20, **GREEDY)
    harness.step(12)
    harness.decisions.clear()
    harness.step(12)
    assert staged(harness).most_in_flight == stages
    assert {len(decision.chunks) for decision in harness.decisions if decision.chunks} == {
        6 // stages
    }
    # A sequence whose token is on its way is in no other step.
    assert len(staged(harness).flights) == stages - 1
    harness.run()


def test_chunks_of_a_prompt_follow_each_other_before_the_first_has_landed() -> None:
    harness = Harness(make_limits(max_tokens_per_step=4), stages=3)
    request = harness.submit([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], max_tokens=3, **GREEDY)
    harness.step(3)
    assert staged(harness).most_in_flight == 3
    harness.run()
    expected = run_alone([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], request.params, 0, 64)
    assert list(harness.result(request).sequences[0].token_ids) == expected.token_ids


@pytest.mark.parametrize("stages", [2, 3])
def test_a_prompt_is_shared_out_so_that_the_second_stage_begins_early(stages: int) -> None:
    """A prompt that one step could take: every stage but the first would wait for all of it."""
    harness = Harness(make_limits(max_tokens_per_step=12), stages=stages)
    prompt = [1 + token % 7 for token in range(11)]
    request = harness.submit(prompt, max_tokens=3, **GREEDY)
    harness.step()
    first = harness.submit([5, 4], max_tokens=3, **GREEDY)
    harness.step(stages)
    prompts = [decision.tokens for decision in harness.decisions if decision.chunks]
    assert prompts[0] == 12 // stages
    assert max(prompts) <= 12 // stages
    harness.run()
    for asked, tokens in ((request, prompt), (first, [5, 4])):
        expected = run_alone(tokens, asked.params, 0, 64)
        assert list(harness.result(asked).sequences[0].token_ids) == expected.token_ids


def test_a_prompt_goes_on_where_others_take_its_share_of_the_step() -> None:
    harness = Harness(make_limits(max_sequences=6, max_tokens_per_step=6), stages=2)
    for first in range(1, 6):
        harness.submit([first], max_tokens=30, **GREEDY)
    harness.step(8)
    late = harness.submit([1, 2, 3, 4, 5, 6], max_tokens=1, **GREEDY)
    harness.step(16)
    assert late.finished


def test_an_error_ends_the_requests_of_its_step_and_no_others() -> None:
    harness = Harness(make_limits(), stages=2)
    requests = [harness.submit([first, 2], max_tokens=12, **GREEDY) for first in (1, 2, 3, 4)]
    harness.step(8)
    broken = {chunk.sequence.request.number for chunk in oldest(harness)}
    harness.session.fail_next = RuntimeError("the stage has fallen over")
    harness.run()
    assert 0 < len(broken) < 4
    for request in requests:
        if request.number in broken:
            with pytest.raises(RequestFailed, match="has fallen over"):
                harness.result(request)
        else:
            assert len(harness.result(request).sequences[0].token_ids) == 12


def oldest(harness: Harness) -> list[Chunk]:
    assert isinstance(harness.stepper, PipelinedStepper)
    assert harness.stepper._flights
    return harness.stepper._flights[0][0].decision.chunks


def test_a_step_that_cannot_be_launched_ends_its_own_requests() -> None:
    harness = Harness(make_limits(), stages=2)
    kept = harness.submit([1, 2], max_tokens=6, **GREEDY)
    harness.step()  # it is on its way
    refused = harness.submit([3, 2], max_tokens=6, **GREEDY)
    staged(harness).fail_launch = RuntimeError("no room for the arrays")
    harness.run()
    with pytest.raises(RequestFailed, match="no room for the arrays"):
        harness.result(refused)
    assert len(harness.result(kept).sequences[0].token_ids) == 6


def test_a_request_that_is_cancelled_in_flight_gives_its_blocks_back() -> None:
    harness = Harness(make_limits(), stages=2)
    gone = harness.submit([1, 2, 3, 4, 5], max_tokens=20, **GREEDY)
    stays = harness.submit([2, 2], max_tokens=6, **GREEDY)
    harness.step(4)
    harness.cancel(gone)
    assert gone.finished
    harness.run()
    assert len(harness.result(stays).sequences[0].token_ids) == 6
    assert harness.result(gone).sequences[0].finish_reason == FinishReason.CANCELLED


def test_the_loop_drives_it_and_a_lost_session_ends_all() -> None:
    limits = make_limits()
    history = HistorySession(vocab_size=VOCAB_SIZE, block_size=4, limits=limits)
    session = StagedSession(history, 2)
    params = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
    loop = EngineLoop(session, limits)
    try:
        handles = [loop.submit([first, 2], params) for first in (1, 2, 3, 4)]
        for first, handle in zip((1, 2, 3, 4), handles, strict=True):
            expected = run_alone([first, 2], params, 0, 64)
            assert list(handle.result().sequences[0].token_ids) == expected.token_ids
        assert session.most_in_flight == 2
        history.fail_next = SessionLost("rank 1 has died")
        handles = [loop.submit([first, 3], params) for first in (1, 2, 3)]
        for handle in handles:
            with pytest.raises(RequestFailed, match="rank 1 has died"):
                handle.result()
    finally:
        loop.close(drain=False)
