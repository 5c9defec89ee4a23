"""Random workloads: whatever shares the batch, a request comes to what it comes to alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddock.runtime.errors import QueueFull, RequestTooLarge
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.request import FinishReason, Request
from tests.runtime.alone import run_alone, run_alone_prompt_logprobs
from tests.runtime.harness import Harness, make_limits
from tests.runtime.letter_tokenizer import VOCAB_SIZE

TEMPLATES = [[1] * 23, [2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1], [4, 5, 6]]
"""Beginnings that prompts share."""


@dataclass(frozen=True)
class Submit:
    """A request; `follows` continues what an earlier one came to, as the next turn of a chat."""

    template: int
    kept: int
    tail: list[int]
    priority: int
    deadline_s: float | None
    salt: str
    params: dict[str, Any] = field(default_factory=dict)
    follows: int | None = None


@dataclass(frozen=True)
class Cancel:
    which: int


@dataclass(frozen=True)
class Go:
    steps: int
    seconds: float


stops = st.lists(
    st.sampled_from(["abca", "abc", "bca", "aab", "c.", "\u00e9.", "cabab", "ccc"]), max_size=2
)
sampling = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0]),
        "seed": st.integers(0, 3),
        "n": st.sampled_from([1, 1, 1, 2, 3]),
        "max_tokens": st.sampled_from([None, 1, 5, 9, 17, 17, 30]),
        "stop": stops.map(tuple),
        "include_stop": st.booleans(),
        "stop_token_ids": st.sampled_from([(), (), (3,), (7, 8)]),
        "ignore_eos": st.sampled_from([True, True, False]),
    },
    optional={
        "min_tokens": st.integers(0, 12),
        "logprobs": st.integers(0, 2),
        "prompt_logprobs": st.integers(0, 2),
        "repetition_penalty": st.just(1.3),
        "frequency_penalty": st.just(0.5),
        "top_k": st.just(3),
        "bad_words": st.just(("ab",)),
    },
)
submits = st.builds(
    Submit,
    template=st.integers(0, len(TEMPLATES) - 1),
    kept=st.integers(1, 23),
    tail=st.lists(st.integers(1, VOCAB_SIZE - 1), max_size=6),
    priority=st.sampled_from([0, 0, 0, -1, 2]),
    deadline_s=st.sampled_from([None, None, None, 0.0, 1.0, 4.0]),
    salt=st.sampled_from(["", "", "", "other"]),
    params=sampling,
    follows=st.sampled_from([None, None, None, 0, 1]),
)
actions = st.lists(
    st.one_of(
        submits,
        submits,
        st.builds(Go, steps=st.integers(0, 6), seconds=st.sampled_from([0.0, 0.5, 30.0])),
        st.builds(Cancel, which=st.integers(0, 9)),
    ),
    min_size=1,
    max_size=16,
)


@st.composite
def limits(draw: st.DrawFn) -> tuple[Limits, int]:
    """Tight ones, with a block size."""
    sequences = draw(st.integers(1, 5))
    block_size = draw(st.sampled_from([1, 2, 4, 8]))
    context = draw(st.integers(24, 48))
    cache_tokens = draw(st.one_of(st.integers(24, 56), st.integers(24, 56), st.integers(24, 200)))
    return make_limits(
        max_sequences=sequences,
        max_tokens_per_step=draw(st.integers(sequences, 24)),
        max_context=context,
        cache_blocks=cache_tokens // block_size,
        prefill_chunk=draw(st.sampled_from([None, 1, 3, 8])),
        max_prompt_logit_rows=draw(st.sampled_from([1, 4, 100])),
        max_queued_requests=draw(st.sampled_from([2, 100])),
    ), block_size


class Workload:
    """Runs a list of actions and remembers what was asked."""

    def __init__(self, bounds: Limits, block_size: int, stages: int = 1) -> None:
        self.harness = Harness(bounds, block_size=block_size, stages=stages)
        self.context = min(bounds.max_context, bounds.cache_blocks * block_size)
        self.requests: list[Request] = []
        self.cancelled: set[int] = set()

    def submit(self, action: Submit) -> None:
        prompt = [*TEMPLATES[action.template][: action.kept], *action.tail]
        if action.follows is not None and action.follows < len(self.requests):
            earlier = self.requests[action.follows]
            prompt = [*earlier.sequences[0].token_ids.tolist(), *action.tail]
        params = dict(action.params)
        if params.get("max_tokens") is not None and "min_tokens" in params:
            params["min_tokens"] = min(params["min_tokens"], params["max_tokens"])
        try:
            request = self.harness.submit(
                prompt,
                priority=action.priority,
                deadline_s=action.deadline_s,
                salt=action.salt,
                **params,
            )
        except RequestTooLarge:
            assert len(prompt) + max(params.get("min_tokens", 0), 1) > self.context
        except QueueFull:
            assert self.harness.admission.requests == self.harness.limits.max_queued_requests
        else:
            self.requests.append(request)

    def do(self, action: Submit | Cancel | Go) -> None:
        if isinstance(action, Submit):
            self.submit(action)
        elif isinstance(action, Cancel):
            if action.which < len(self.requests):
                request = self.requests[action.which]
                self.cancelled.add(request.number)
                self.harness.cancel(request)
                assert request.finished
        else:
            self.harness.now += action.seconds
            self.harness.step(action.steps)
            late = [r for r in self.requests if r.deadline and r.deadline <= self.harness.now]
            assert action.steps == 0 or all(request.finished for request in late)

    def finish(self) -> None:
        """Run to the end: every sequence of best rank goes on in every step, so there is one."""
        tokens = sum(self.context for request in self.requests for _ in request.sequences)
        self.harness.run(steps=tokens * (1 + len(self.requests)))

    def check(self, request: Request) -> None:
        result = self.harness.result(request)
        prompt, params = list(result.prompt_token_ids), request.params
        cut = {FinishReason.CANCELLED, FinishReason.DEADLINE}
        for sequence in result.sequences:
            expected = run_alone(prompt, params, sequence.index, self.context)
            count = len(sequence.token_ids)
            assert list(sequence.token_ids) == expected.token_ids[:count]
            if params.logprobs is None:
                assert sequence.logprobs is None
            else:
                assert list(sequence.logprobs or ()) == expected.logprobs[:count]
            assert len(result.timing.token_times[sequence.index]) == count
            if sequence.finish_reason in cut:
                was_cancelled = request.number in self.cancelled
                assert was_cancelled or request.deadline is not None
                continue
            assert sequence.text == expected.text
            assert sequence.finish_reason == expected.finish_reason
            assert sequence.stop_reason == expected.stop_reason
        if result.prompt_logprobs is not None:
            assert params.prompt_logprobs is not None
            wanted = run_alone_prompt_logprobs(prompt, params.prompt_logprobs)
            assert list(result.prompt_logprobs) == wanted
        elif params.prompt_logprobs is not None:
            assert not result.sequences[0].token_ids


def run_workload(
    bounds: tuple[Limits, int], script: list[Submit | Cancel | Go], stages: int = 1
) -> Workload:
    workload = Workload(*bounds, stages)
    for action in script:
        workload.do(action)
    workload.finish()
    for request in workload.requests:
        workload.check(request)
    return workload


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bounds=limits(), script=actions)
def test_a_request_comes_to_what_it_comes_to_alone(
    bounds: tuple[Limits, int], script: list[Submit | Cancel | Go]
) -> None:
    run_workload(bounds, script)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bounds=limits(), script=actions, stages=st.integers(2, 4))
def test_and_so_it_does_where_several_steps_are_in_flight(
    bounds: tuple[Limits, int], script: list[Submit | Cancel | Go], stages: int
) -> None:
    run_workload(bounds, script, stages)


def test_a_pool_too_small_for_all_preempts_and_loses_nothing() -> None:
    bounds = make_limits(max_sequences=3, max_tokens_per_step=6, cache_blocks=13)
    params = {"temperature": 1.0, "seed": 1, "ignore_eos": True, "max_tokens": 17}
    script: list[Submit | Cancel | Go] = [
        Submit(0, 20, [index], 0, None, "", params | {"n": 2}) for index in range(1, 4)
    ]
    workload = run_workload((bounds, 4), script)
    assert workload.harness.scheduler.counters.preemptions > 0
    assert any(sequence.preemptions for r in workload.requests for sequence in r.sequences)
    # A preempted sequence finds again what nobody needed in between.
    assert workload.harness.session.tokens_run < sum(
        r.prompt_length * (1 + s.preemptions) + s.generated
        for r in workload.requests
        for s in r.sequences
    )
