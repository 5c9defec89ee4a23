"""Steps launched ahead of their tokens yield the tokens of steps that wait for each other.

The session is the cuda engine's over a double of the device, which puts work off until somebody
waits for it: a step that read what the host does not know yet would be seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paddock.engines.cuda.session import CUDASession
from paddock.engines.protocol import Choices, StepInputs
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.errors import RequestFailed
from paddock.runtime.outputs import RequestResult
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.request import FinishReason
from tests.engines.cuda.test_host_side import opened
from tests.runtime.harness import make_limits

VOCABULARY = 64


class Waiting:
    """The same session without the part that chooses."""

    def __init__(self, session: CUDASession) -> None:
        self._session = session
        self.vocab_size, self.block_size = session.vocab_size, session.block_size
        self.block_bytes, self.state_bytes = session.block_bytes, session.state_bytes
        self.allocate_cache, self.run, self.close = (
            session.allocate_cache,
            session.run,
            session.close,
        )


class Counting(CUDASession):
    """How often a step was launched while another was on its way, and how often steps waited."""

    ahead = waited = launched = 0

    def choose(self, step: StepInputs, choices: Choices) -> None:
        self.ahead += bool(self._flights)
        self.launched += 1
        super().choose(step, choices)

    def run(self, step: StepInputs) -> Any:
        self.waited += 1
        return super().run(step)


def counting() -> Counting:
    session = opened("llama")
    session.__class__ = Counting
    assert isinstance(session, Counting)
    return session


def workload(seed: int, count: int, **settings: Any) -> list[tuple[list[int], SamplingParams, int]]:
    """Prompts, their settings, and priorities."""
    random = np.random.default_rng(seed)
    made: list[tuple[list[int], SamplingParams, int]] = []
    for i in range(count):
        prompt = random.integers(0, VOCABULARY, random.integers(1, 20)).tolist()
        if i % 3 == 2:
            prompt = made[-1][0] + prompt  # a prefix that others have
        params = SamplingParams(
            max_tokens=int(random.integers(1, 14)),
            temperature=float(random.choice([0.0, 0.7, 1.3])),
            top_k=int(random.choice([0, 5])),
            top_p=float(random.choice([1.0, 0.8])),
            min_p=float(random.choice([0.0, 0.05])),
            seed=i,
            stop_token_ids=tuple(random.integers(0, VOCABULARY, 3).tolist()),
            n=int(random.choice([1, 1, 2])),
            **settings,
        )
        made.append((prompt[:40], params, int(random.integers(0, 2))))
    return made


def results(
    session: Any, limits: Limits, asked: list[tuple[list[int], SamplingParams, int]]
) -> list[RequestResult]:
    with EngineLoop(session, limits) as loop:
        handles = [loop.submit(p, params, priority=rank) for p, params, rank in asked]
        found = [handle.result() for handle in handles]
        stats = loop.stats()
    assert stats.blocks_held == 0
    assert stats.failed_steps == 0
    return found


def tokens(found: list[RequestResult]) -> list[list[tuple[tuple[int, ...], FinishReason]]]:
    return [[(s.token_ids, s.finish_reason) for s in one.sequences] for one in found]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("blocks", [15, 200], ids=["few blocks", "many blocks"])
def test_tokens_are_those_of_steps_that_wait(seed: int, blocks: int) -> None:
    limits = make_limits(max_sequences=5, cache_blocks=blocks, max_tokens_per_step=24)
    asked = workload(seed, 14)
    session = counting()
    found = tokens(results(session, limits, asked))
    assert found == tokens(results(Waiting(opened("llama")), limits, asked))
    assert session.ahead > 10
    assert session.waited == 0
    reasons = {reason for one in found for _, reason in one}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"min_tokens": 1},
        {"logit_bias": {3: 5.0}},
        {"typical_p": 0.7},
        {"logprobs": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_sequences_that_need_their_logits_make_their_steps_wait(settings: dict[str, Any]) -> None:
    limits = make_limits(max_sequences=5, cache_blocks=60)
    asked = workload(1, 5) + workload(2, 3, **settings) + workload(3, 6)
    session = counting()
    found = results(session, limits, asked)
    expected = results(Waiting(opened("llama")), limits, asked)
    assert tokens(found) == tokens(expected)
    assert session.waited > 0
    assert session.ahead > 0


def test_nothing_is_computed_behind_the_last_token() -> None:
    """That it is the last is known before it is."""
    session = counting()
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    limits = make_limits(max_context=16)
    (one,) = results(session, limits, [(list(range(3, 13)), params, 0)])
    assert len(one.sequences[0].token_ids) == 6
    assert session.launched == 6


def test_cancelled_requests_leave_nothing_behind() -> None:
    limits = make_limits(max_sequences=3, cache_blocks=40)
    session = counting()
    with EngineLoop(session, limits) as loop:
        long = SamplingParams(max_tokens=40, temperature=0)
        handles = [loop.submit([1, 2, 3 + i], long) for i in range(6)]
        for handle in handles[::2]:
            next(iter(handle))
            handle.cancel()
        kept = [handle.result() for handle in handles[1::2]]
        assert all(len(one.sequences[0].token_ids) == 40 for one in kept)
    assert loop.stats().blocks_held == 0


class Cramped(Counting):
    """Memory is out wherever a step has more than two sequences."""

    refused = 0

    def choose(self, step: StepInputs, choices: Choices) -> None:
        if len(step.past_lengths) > 2:
            self.refused += 1
            raise MemoryError("no room")
        super().choose(step, choices)


def test_a_step_that_finds_no_memory_preempts() -> None:
    limits = make_limits(max_sequences=5, cache_blocks=100)
    asked = workload(5, 8)
    session = counting()
    session.__class__ = Cramped
    assert isinstance(session, Cramped)
    found = results(session, limits, asked)
    assert session.refused > 0
    assert tokens(found) == tokens(results(Waiting(opened("llama")), limits, asked))


class Broken(Counting):
    """The third step's tokens never come."""

    steps = 0

    def chosen(self) -> Any:
        self.steps += 1
        tokens = super().chosen()
        if self.steps == 3:
            raise RuntimeError("the device is gone")
        return tokens


def test_an_error_ends_the_requests_of_its_step() -> None:
    limits = make_limits(max_sequences=2, cache_blocks=60)
    session = counting()
    session.__class__ = Broken
    params = SamplingParams(max_tokens=9, temperature=0)
    with EngineLoop(session, limits) as loop:
        handles = [loop.submit([1, 2, 3 + i], params) for i in range(4)]
        for handle in handles[:2]:
            with pytest.raises(RequestFailed, match="the device is gone"):
                handle.result()
        assert [len(h.result().sequences[0].token_ids) for h in handles[2:]] == [9, 9]
