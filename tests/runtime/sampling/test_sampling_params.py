"""Every setting has bounds, and what is wrong is said in one line that names it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n: input should be greater than or equal to 1, found 0"),
        ({"n": True}, "n: input should be a valid integer, found True"),
        ({"n": 1.5}, "n: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"min_tokens": -1}, "min_tokens: "),
        ({"min_tokens": 5, "max_tokens": 3}, r"min_tokens \(5\) .* max_tokens \(3\)"),
        ({"temperature": -0.1}, "temperature: .* found -0.1"),
        ({"temperature": math.nan}, "temperature: .* finite"),
        ({"temperature": math.inf}, "temperature: .* finite"),
        ({"temperature": "1"}, "temperature: .* found '1'"),
        ({"top_k": -1}, "top_k: "),
        ({"top_p": 0}, "top_p: "),
        ({"top_p": 1.01}, "top_p: "),
        ({"min_p": -0.1}, "min_p: "),
        ({"typical_p": 0}, "typical_p: "),
        ({"repetition_penalty": 0}, "repetition_penalty: "),
        ({"presence_penalty": 2.1}, "presence_penalty: "),
        ({"frequency_penalty": -2.1}, "frequency_penalty: "),
        ({"logit_bias": {5: 101}}, "logit_bias.5: .* found 101"),
        ({"logit_bias": {-5: 1}}, "logit_bias.-5"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five"),
        ({"logit_bias": {5: True}}, "logit_bias: .* boolean"),
        ({"logit_bias": {5: math.inf}}, "logit_bias.5: "),
        ({"logit_bias": [1, 2]}, "logit_bias: "),
        ({"bad_words": ["a", ""]}, "bad_words.1: "),
        ({"seed": 2**64}, "seed: "),
        ({"seed": "7"}, "seed: "),
        ({"logprobs": -1}, "logprobs: "),
        ({"logprobs": 101}, "logprobs: "),
        ({"prompt_logprobs": 101}, "prompt_logprobs: "),
        ({"stop": [1]}, "stop.0: "),
        ({"stop": ["\ud83d"]}, "stop.0: "),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0: "),
        ({"stop_token_ids": [True]}, "stop_token_ids.0: "),
        ({"ignore_eos": 1}, "ignore_eos: "),
        ({"tempurature": 1}, "no setting is called 'tempurature'; nearest is 'temperature'"),
        ({"n": 0, "top_k": -1}, r"n: .* \(and 1 more\)"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"sampling parameters: {message}") as error:
        SamplingParams(**values)
    assert "\n" not in str(error.value)
    with pytest.raises(RequestError, match=message):
        SamplingParams.model_validate(values)


def test_long_values_are_shortened() -> None:
    with pytest.raises(RequestError) as error:
        SamplingParams(stop=[["x" * 10_000]])  # type: ignore[arg-type]
    assert len(str(error.value)) < 250


def test_json_is_read_as_it_comes() -> None:
    text = '{"logit_bias": {"5": -3}, "stop": ["a", "b"], "temperature": 0, "stop_token_ids": [7]}'
    for params in (
        SamplingParams.model_validate_json(text),
        SamplingParams.model_validate(json.loads(text)),
    ):
        assert params.logit_bias == {5: -3.0}
        assert params.stop == ("a", "b")
        assert params.stop_token_ids == (7,)
        assert params.greedy
    assert SamplingParams.model_validate_json(params.model_dump_json()) == params


def test_one_string_is_not_read_letter_by_letter() -> None:
    params = SamplingParams(stop="END", bad_words="word")  # type: ignore[arg-type]
    assert params.stop == ("END",)
    assert params.bad_words == ("word",)


def test_the_errors_of_a_request_that_holds_them_are_the_same() -> None:
    class Body(BaseModel):
        sampling: SamplingParams

    with pytest.raises(RequestError, match="top_p: "):
        Body(sampling={"top_p": 2})  # type: ignore[arg-type]


def test_the_defaults_change_nothing() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1, 0, 1, 0)
    assert (params.typical_p, params.repetition_penalty) == (1, 1)
    assert params.max_tokens is None
    assert not params.greedy


def test_params_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SamplingParams().n = 2
