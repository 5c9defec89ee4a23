"""Golden transcripts of streams, byte for byte but for ids and times, as they go over the wire.

One token each: how many tokens an event holds depends on how busy the machine is.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.runtime.server.serving import Serving

HELLO = [{"role": "user", "content": "What does ls do?"}]
USAGE = (
    '"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,'
    '"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}'
)
CHUNK = '"object":"chat.completion.chunk","created":0,"model":"demo"'
TRANSCRIPTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": (
        "/v1/chat/completions",
        {
            "messages": HELLO,
            "max_tokens": 1,
            "stream_options": {"include_usage": True},
            "cache_salt": "a",
        },
        'data: {"id":"chatcmpl-ID",' + CHUNK + ',"choices":[{"index":0,"delta":{"role":"assistant",'
        '"content":""},"logprobs":null,"finish_reason":null}]}\n\n'
        'data: {"id":"chatcmpl-ID",' + CHUNK + ',"choices":[{"index":0,"delta":{"content":"ls"},'
        '"logprobs":null,"finish_reason":"length","stop_reason":null}]}\n\n'
        'data: {"id":"chatcmpl-ID",' + CHUNK + ',"choices":[],' + USAGE + "}\n\n"
        "data: [DONE]\n\n",
    ),
    "completion": (
        "/v1/completions",
        {"prompt": "The ls command", "max_tokens": 1, "echo": True},
        'data: {"id":"cmpl-ID","object":"text_completion","created":0,"model":"demo","choices":'
        '[{"index":0,"text":"The ls command is","logprobs":null,"finish_reason":"length",'
        '"stop_reason":null}]}\n\n'
        "data: [DONE]\n\n",
    ),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_streams_are_as_written_down(server: Serving, name: str) -> None:
    path, body, expected = TRANSCRIPTS[name]
    status, headers, text = server.ask(path, {"model": "demo", "stream": True, **body})
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert _without_chance(text) == expected


def test_a_response_as_it_goes_over_the_wire(server: Serving) -> None:
    body = {"model": "demo", "stream": True, "input": "What does ls do?", "max_output_tokens": 1}
    text = _without_chance(server.ask("/v1/responses", body)[2])
    events = [event.split("\n") for event in text.strip().split("\n\n")]
    assert [event[0] for event in events] == [
        "event: response.created",
        "event: response.in_progress",
        "event: response.output_item.added",
        "event: response.content_part.added",
        "event: response.output_text.delta",
        "event: response.output_text.done",
        "event: response.content_part.done",
        "event: response.output_item.done",
        "event: response.incomplete",
    ]
    assert events[4][1] == (
        'data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_ID",'
        '"output_index":0,"content_index":0,"delta":"ls","logprobs":[]}'
    )


def _without_chance(text: str) -> str:
    text = re.sub(r"(chatcmpl-|cmpl-|resp_|msg_)[0-9a-f]{32}", r"\1ID", text)
    return re.sub(r'"created":\d+', '"created":0', text)
