"""`/v1/responses` through the official client, which parses each of its events."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from paddock import LLM, SamplingParams

ASKED = "What does ls do?"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_an_answer_is_that_of_a_chat(client: openai.OpenAI, llm: LLM) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
    offline = llm.chat(chat, SamplingParams(max_tokens=20))
    answer = client.responses.create(
        model="demo", input=ASKED, instructions="Be brief.", max_output_tokens=20
    )
    assert answer.output_text == offline.text
    assert answer.instructions == "Be brief."
    assert answer.usage is not None
    assert answer.usage.input_tokens == offline.usage.prompt_tokens
    assert answer.usage.output_tokens == offline.usage.completion_tokens
    expected = {"stop": "completed", "length": "incomplete"}[offline.finish_reason]
    assert answer.status == expected
    [message] = answer.output
    assert message.type == "message"
    assert message.status == expected
    again = client.responses.create(
        model="demo",
        input=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": ASKED}],
        max_output_tokens=20,
    )
    assert again.output_text == answer.output_text


def test_a_stream_tells_the_answer_in_openais_order(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="demo", input=ASKED, max_output_tokens=6)
    events = list(
        client.responses.create(model="demo", input=ASKED, max_output_tokens=6, stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    names = [event.type for event in events]
    deltas = [name for name in names if name == "response.output_text.delta"]
    assert len(deltas) > 1
    assert [name for name in names if name != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == text
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 6


def test_the_clients_own_stream_helper_follows_it(client: openai.OpenAI) -> None:
    with client.responses.stream(model="demo", input=ASKED, max_output_tokens=200) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_response()
    assert answer.status == "completed"
    assert answer.output_text


def test_calls_are_items_of_their_own(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "Weather in Rome?"}]
    answer = client.responses.create(
        model="demo",
        input=asked,
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "get_weather"},
        parallel_tool_calls=False,
    )
    [call] = answer.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert set(json.loads(call.arguments)) == {"city"}
    events = list(
        client.responses.create(
            model="demo",
            input=asked,
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
            stream=True,
        )
    )
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    [done] = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert len(pieces) > 1
    assert "".join(pieces) == done.arguments == call.arguments
    # What came back is sent again, with the tool's result.
    followed = client.responses.create(
        model="demo",
        input=[
            *asked,
            call.model_dump(),  # type: ignore[list-item]  # as the client's own guide sends it
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
        ],
        max_output_tokens=5,
    )
    assert followed.output_text


def test_the_text_may_have_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    answer = client.responses.create(
        model="demo",
        input=ASKED,
        text={"format": {"type": "json_schema", "name": "verdict", "schema": schema}},
    )
    assert isinstance(json.loads(answer.output_text)["ok"], bool)
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


def test_log_probabilities_come_where_they_are_included(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="demo",
        input=ASKED,
        max_output_tokens=5,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    [message] = answer.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [len(one.top_logprobs) for one in part.logprobs] == [2] * 5
    assert "".join(one.token for one in part.logprobs) == part.text


def test_what_is_not_stored_cannot_be_gone_back_to(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="demo", input=ASKED, previous_response_id="resp_1")
    answer = client.responses.create(model="demo", input="Hi", max_output_tokens=1, store=True)
    assert answer.model_extra is not None
    assert answer.model_extra["store"] is False
