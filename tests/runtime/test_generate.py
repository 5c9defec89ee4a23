"""Many prompts offline."""

from __future__ import annotations

import pytest

from paddock.engines.protocol import StepInputs
from paddock.graph.dtype import Array
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.errors import RequestError, RequestFailed, RequestTooLarge
from paddock.runtime.generate import generate
from paddock.runtime.outputs import RequestResult
from paddock.runtime.sampling.sampling_params import SamplingParams
from tests.runtime.alone import run_alone
from tests.runtime.harness import make_limits
from tests.runtime.history_session import HistorySession
from tests.runtime.letter_tokenizer import VOCAB_SIZE, LetterTokenizer

LIMITS = make_limits(max_queued_requests=5, cache_blocks=20)


def new_loop() -> EngineLoop:
    session = HistorySession(vocab_size=VOCAB_SIZE, block_size=4, limits=LIMITS)
    return EngineLoop(session, LIMITS, tokenizer=LetterTokenizer())


def test_results_are_in_the_order_of_the_prompts() -> None:
    """Ten times as many as the queue takes, of different lengths."""
    prompts = ["abc"[: 1 + index % 3] * (1 + index % 7) for index in range(50)]
    params = [SamplingParams(seed=i, max_tokens=1 + 5 * i % 23) for i in range(50)]
    told: list[int] = []

    def on_result(number: int, result: RequestResult) -> None:
        told.append(number)
        assert list(result.prompt_token_ids) == LetterTokenizer().encode(prompts[number])

    with new_loop() as loop:
        results = generate(loop, prompts, params, on_result=on_result)
        assert loop.stats().requests_finished == 50
    assert told == list(range(50))
    for prompt, own, result in zip(prompts, params, results, strict=True):
        assert result.text == run_alone(LetterTokenizer().encode(prompt), own, 0, 64).text


def test_one_parameter_for_all_or_one_for_each() -> None:
    with new_loop() as loop:
        assert generate(loop, []) == []
        same = generate(loop, ["ab", [1, 2]], SamplingParams(temperature=0.0, max_tokens=3))
        assert same[0].token_ids == same[1].token_ids
        with pytest.raises(RequestError, match="2 prompts came with 1 sampling"):
            generate(loop, ["a", "b"], [SamplingParams()])


def test_a_prompt_that_cannot_run_cancels_the_others() -> None:
    with new_loop() as loop:
        with pytest.raises(RequestTooLarge):
            generate(loop, [[1], [1] * 99], SamplingParams(ignore_eos=True))
        generate(loop, ["a"], SamplingParams(max_tokens=1))
        assert loop.stats().running == 0


def test_a_failure_cancels_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = new_loop()
    run = loop._session.run
    steps: list[StepInputs] = []

    def failing(step: StepInputs) -> Array:
        steps.append(step)
        if len(steps) == 10:
            raise RuntimeError("hiccups")
        return run(step)

    monkeypatch.setattr(loop._session, "run", failing)
    with loop, pytest.raises(RequestFailed, match="hiccups"):
        generate(loop, ["abc"] * 30, SamplingParams(ignore_eos=True))
    assert loop.stats().requests_finished == loop.departures


def test_ctrl_c_cancels_all() -> None:
    def interrupt(number: int, result: RequestResult) -> None:
        raise KeyboardInterrupt

    with new_loop() as loop:
        with pytest.raises(KeyboardInterrupt):
            generate(loop, ["abc"] * 30, SamplingParams(ignore_eos=True), on_result=interrupt)
        generate(loop, ["a"], SamplingParams(max_tokens=1))
        assert loop.stats().running == loop.stats().waiting == 0
