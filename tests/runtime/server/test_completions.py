"""`/v1/completions` through the official client, and as lm-evaluation-harness asks it."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from paddock import LLM, SamplingParams

PROMPTS = ["The ls command", "A file is"]


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI, llm: LLM) -> None:
    settings = SamplingParams(max_tokens=9, n=2, seed=1, temperature=0.8)
    offline = llm.generate(PROMPTS, settings)
    answer = client.completions.create(
        model="demo", prompt=PROMPTS, max_tokens=9, n=2, seed=1, temperature=0.8
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    expected = [sequence.text for one in offline for sequence in one.sequences]
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in offline)
    assert answer.usage.completion_tokens == 2 * 2 * 9


def test_a_stream_of_several_prompts_is_the_same(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.completions.create(
            model="demo", prompt=PROMPTS, max_tokens=9, echo=True, logprobs=2, **more
        )

    whole = ask()
    texts = ["", ""]
    tokens: list[list[str]] = [[], []]
    offsets: list[list[int]] = [[], []]
    for chunk in ask(stream=True):
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        if choice.logprobs:
            tokens[choice.index] += choice.logprobs.tokens
            offsets[choice.index] += choice.logprobs.text_offset
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert all(one == sorted(one) for one in offsets)


@pytest.mark.parametrize("prompt", ["The ls command", [0, 318, 402]])
def test_text_and_token_ids_are_prompts(client: openai.OpenAI, llm: LLM, prompt: Any) -> None:
    asked = prompt if isinstance(prompt, str) else [prompt]
    offline = llm.generate(asked, SamplingParams(max_tokens=5))[0]
    answer = client.completions.create(model="demo", prompt=prompt, max_tokens=5)
    assert answer.choices[0].text == offline.text


def test_sixteen_tokens_are_usual_where_the_recipe_says_nothing(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="A", extra_body={"ignore_eos": True, "max_tokens": None}
    )
    assert answer.usage is not None
    # The demo's generation_config.json says 128.
    assert answer.usage.completion_tokens == 128


def test_echoed_log_probabilities_are_those_of_the_prompt(client: openai.OpenAI, llm: LLM) -> None:
    """As lm-evaluation-harness asks for the likelihood of a continuation."""
    prompt = llm.tokenizer.encode("The ls command lists files")
    offline = llm.generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=1))[0]
    answer = client.completions.create(
        model="demo",
        prompt=[prompt],
        max_tokens=1,
        temperature=0,
        logprobs=1,
        echo=True,
        seed=1234,
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert offline.prompt_logprobs is not None
    expected = [None if known is None else known.logprob for known in offline.prompt_logprobs]
    assert found.token_logprobs is not None
    assert found.token_logprobs[:-1] == expected
    assert found.top_logprobs is not None
    assert found.top_logprobs[0] is None
    for logprob, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True):
        assert logprob in top.values()
        assert len(top) <= 2
    greedy = [
        lp == max(top.values())
        for lp, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True)
    ]
    likeliest = [known.top_logprobs[0][0] for known in offline.prompt_logprobs if known]
    assert greedy[:-1] == [a == b for a, b in zip(prompt[1:], likeliest, strict=True)]


def test_nothing_may_be_generated(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="The ls command", max_tokens=0, echo=True, logprobs=0
    )
    [choice] = answer.choices
    assert choice.text.endswith("The ls command")
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["<|bos|>", "The", " l", "s", " command"]
    assert choice.logprobs.top_logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    streamed = client.completions.create(
        model="demo", prompt="The ls command", max_tokens=0, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text


def test_echo_stands_before_each_text(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="demo", prompt="The ls", max_tokens=4)
    echoed = client.completions.create(model="demo", prompt="The ls", max_tokens=4, echo=True)
    assert echoed.choices[0].text == "The ls" + plain.choices[0].text


def test_best_of_must_be_n(client: openai.OpenAI) -> None:
    client.completions.create(model="demo", prompt="A", max_tokens=1, n=2, best_of=2)
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(model="demo", prompt="A", max_tokens=1, n=1, best_of=2)
