"""`/v1/chat/completions` through the official client, compared with the model offline."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from paddock import LLM, SamplingParams
from tests.runtime.server.serving import Serving

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What does ls do?"}]
PLAIN: list[dict[str, Any]] = [{"role": "user", "content": "What does ls do?"}]


def test_an_answer_is_what_the_model_says_offline(client: openai.OpenAI, llm: LLM) -> None:
    offline = llm.chat(PLAIN, SamplingParams(max_tokens=30))
    answer = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=30)
    assert answer.object == "chat.completion"
    assert answer.model == "demo"
    assert answer.id.startswith("chatcmpl-")
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == offline.text
    assert choice.finish_reason == offline.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == offline.usage.prompt_tokens
    assert answer.usage.completion_tokens == offline.usage.completion_tokens
    assert answer.usage.total_tokens == sum(
        (offline.usage.prompt_tokens, offline.usage.completion_tokens)
    )


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=30)
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=ASKED,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert len(pieces) > 3
    reasons = [piece.choices[0].finish_reason for piece in pieces]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    assert last.choices == []
    assert whole.usage is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(piece.usage is None for piece in pieces)


def test_usage_may_come_with_every_chunk(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="demo",
        messages=ASKED,
        max_tokens=5,
        stream=True,
        extra_body={"stream_options": {"continuous_usage_stats": True, "include_usage": True}},
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert counts == sorted(counts)
    assert counts[-1] == 5


def test_log_probabilities_are_those_of_the_model(client: openai.OpenAI, llm: LLM) -> None:
    offline = llm.chat(PLAIN, SamplingParams(max_tokens=6, logprobs=3))
    answer = client.chat.completions.create(
        model="demo", messages=ASKED, max_tokens=6, logprobs=True, top_logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert offline.logprobs is not None
    for got, expected in zip(found.content, offline.logprobs, strict=True):
        assert got.logprob == expected.logprob
        assert bytes(got.bytes or ()).decode() == got.token
        assert [top.logprob for top in got.top_logprobs] == [p for _, p in expected.top_logprobs]
    text = "".join(token.token for token in found.content)
    assert text.lstrip() == (answer.choices[0].message.content or "").lstrip()


def test_streamed_log_probabilities_are_the_same(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.chat.completions.create(
            model="demo",
            messages=ASKED,
            max_tokens=12,
            logprobs=True,
            top_logprobs=2,
            stop=["and of"],  # holds text back
            **more,
        )

    whole = ask()
    pieces = [c.choices[0].logprobs for c in ask(stream=True)]
    tokens = [token for piece in pieces if piece for token in piece.content or ()]
    assert tokens == whole.choices[0].logprobs.content


def test_several_continuations_differ_and_are_reproducible(client: openai.OpenAI) -> None:
    def ask(seed: int, **more: Any) -> Any:
        return client.chat.completions.create(
            model="demo", messages=ASKED, n=3, seed=seed, temperature=1.0, max_tokens=12, **more
        )

    first = ask(7)
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in ask(7).choices] == texts
    assert [choice.message.content for choice in ask(8).choices] != texts
    streamed = ["", "", ""]
    for chunk in ask(7, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_stop_strings_end_the_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=20)
    text = whole.choices[0].message.content or ""
    word = text.split()[3]
    stopped = client.chat.completions.create(
        model="demo", messages=ASKED, max_tokens=20, stop=[word, "never"]
    )
    assert stopped.choices[0].message.content == text[: text.index(word)]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].model_extra == {"stop_reason": word}
    kept = client.chat.completions.create(
        model="demo",
        messages=ASKED,
        max_tokens=20,
        stop=word,
        extra_body={"include_stop_str_in_output": True},
    )
    assert kept.choices[0].message.content == text[: text.index(word) + len(word)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 1.5),
        ("top_p", 0.5),
        ("presence_penalty", 1.5),
        ("frequency_penalty", 1.5),
        ("logit_bias", {"100": 50.0}),
        ("extra_body", {"top_k": 3, "temperature": 1.0}),
        ("extra_body", {"min_p": 0.3, "temperature": 1.0}),
        ("extra_body", {"typical_p": 0.5, "temperature": 1.0}),
        ("extra_body", {"repetition_penalty": 1.8}),
        ("extra_body", {"bad_words": ["list"]}),
        ("extra_body", {"min_tokens": 30}),
        ("extra_body", {"stop_token_ids": [300]}),
        ("extra_body", {"ignore_eos": True}),
    ],
)
def test_every_sampling_field_reaches_the_sampler(
    client: openai.OpenAI, llm: LLM, field: str, value: Any
) -> None:
    settings: dict[str, Any] = {"seed": 3, "max_tokens": 40}
    offline_settings = settings | (value if field == "extra_body" else {field: value})
    offline = llm.chat(PLAIN, SamplingParams(**offline_settings))
    answer = client.chat.completions.create(
        model="demo", messages=ASKED, **(settings | {field: value})
    )
    assert answer.choices[0].message.content == offline.text


def test_a_system_message_in_parts_and_the_developer_role(client: openai.OpenAI) -> None:
    def ask(messages: Any) -> str | None:
        answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=8)
        return answer.choices[0].message.content

    user = {"role": "user", "content": "Hello there"}
    plain = ask([{"role": "system", "content": "Be\nbrief"}, user])
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]
    assert ask([{"role": "system", "content": parts}, user]) == plain
    assert ask([{"role": "developer", "content": "Be\nbrief"}, user]) == plain


def test_the_last_message_may_be_gone_on_with(client: openai.OpenAI, llm: LLM) -> None:
    messages = [*PLAIN, {"role": "assistant", "content": "It lists the"}]
    prompt = llm.tokenizer.apply_chat_template(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    ids = llm.tokenizer.encode(prompt, add_special_tokens=False)
    answer = client.chat.completions.create(
        model="demo",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=6,
        extra_body={"continue_final_message": True},
    )
    expected = llm.generate([ids], SamplingParams(max_tokens=6))[0]
    assert answer.choices[0].message.content == expected.text


def test_more_specific_max_tokens_come_first(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=ASKED, max_completion_tokens=3, max_tokens=9
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_prefixes_are_found_in_the_cache_unless_salted(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "A rather long question about files. " * 20}]

    def cached(salt: str) -> int:
        answer = client.chat.completions.create(
            model="demo", messages=messages, max_tokens=1, extra_body={"cache_salt": salt}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached("ours") == 0
    assert cached("ours") > 100
    assert cached("theirs") == 0


def test_a_deadline_ends_an_answer_as_it_is(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=ASKED,
        max_tokens=900,
        extra_body={"deadline_s": 0.2, "ignore_eos": True},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].model_extra == {"stop_reason": "deadline"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 900


def test_urgent_requests_go_first(server: Serving) -> None:
    """Eight run; of two that wait, the later but more urgent one is answered first."""
    import threading

    order: list[str] = []

    def ask(name: str, priority: int, tokens: int) -> None:
        with server.client() as client:
            client.completions.create(
                model="demo",
                prompt=name,
                max_tokens=tokens,
                extra_body={"priority": priority, "ignore_eos": True},
            )
        order.append(name)

    def start(name: str, priority: int, tokens: int) -> threading.Thread:
        thread = threading.Thread(target=ask, args=(name, priority, tokens))
        thread.start()
        return thread

    threads = [start(f"busy {number}", 0, 300) for number in range(8)]
    server.wait_until(running=8)
    threads.append(start("patient", 50, 60))
    server.wait_until(waiting=1)
    threads.append(start("urgent", -50, 1))
    for thread in threads:
        thread.join()
    assert order.index("urgent") < order.index("patient")


def test_probabilities_of_the_likeliest_add_up(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=ASKED, max_tokens=1, logprobs=True, top_logprobs=100
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    total = sum(math.exp(top.logprob) for top in found.content[0].top_logprobs)
    assert 0.9 < total <= 1.0001


async def _stream_and_leave(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="demo",
            messages=ASKED,
            max_tokens=900,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()


def test_the_asynchronous_client_may_leave(server: Serving) -> None:
    import asyncio

    asyncio.run(_stream_and_leave(server.url))
    server.wait_until(running=0, cache_use=0.0)
    assert server.ask("/ready")[0] == 200
