"""Every field that the official client knows: taken with a value, or refused by its name."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tests.runtime.server.serving import Serving

FUNCTION = {"name": "f", "parameters": {"type": "object"}}
SHARED: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "user": "me",
}
HINTS: dict[str, Any] = {
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "auto",
}
SAMPLING: dict[str, Any] = {
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "logit_bias": {"5": 1},
    "n": 2,
    "seed": 1,
    "stop": ["x"],
}
TAKEN: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **SHARED,
        **HINTS,
        **SAMPLING,
        "model": "demo",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2,
        "max_completion_tokens": 2,
        "logprobs": True,
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "Hi"},
        "reasoning_effort": "max",
        "response_format": {"type": "text"},
        "store": False,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "tool_choice": "auto",
        "tools": [{"type": "function", "function": FUNCTION}],
        "top_logprobs": None,
        "verbosity": "low",
    },
    "/v1/completions": {
        **SHARED,
        **SAMPLING,
        "model": "demo",
        "prompt": "A",
        "best_of": 1,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 2,
        "stream_options": None,
        "suffix": "",
        "n": 1,
    },
    "/v1/responses": {
        **SHARED,
        **HINTS,
        "model": "demo",
        "input": "Hi",
        "background": False,
        "include": ["message.output_text.logprobs"],
        "instructions": "Be brief.",
        "max_output_tokens": 2,
        "max_tool_calls": 3,
        "parallel_tool_calls": True,
        "reasoning": {"effort": "max", "summary": "auto"},
        "store": True,
        "stream_options": {"include_obfuscation": False},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tool_choice": "auto",
        "tools": [{"type": "function", **FUNCTION, "strict": False}],
        "top_logprobs": 1,
        "truncation": "disabled",
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "audio": {"voice": "alloy", "format": "wav"},
        "functions": [FUNCTION],
        "function_call": "auto",
        "moderation": {"model": "m"},
        "web_search_options": {},
    },
    "/v1/completions": {},
    "/v1/responses": {
        "access_programs": {},
        "background_options": {},
        "context_management": [],
        "conversation": "c",
        "image": {},
        "moderation": {"model": "m"},
        "previous_response_id": "r",
        "prompt": {"id": "p"},
    },
}
KNOWN: dict[str, Any] = {
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsBase,
    "/v1/completions": completion_create_params.CompletionCreateParamsBase,
    "/v1/responses": response_create_params.ResponseCreateParamsBase,
}
REQUIRED = ("model", "messages", "prompt", "input")


@pytest.mark.parametrize("path", KNOWN)
def test_no_field_of_the_client_is_left_out(path: str) -> None:
    """A newer client may know more: then they belong in one of the tables."""
    known = set(KNOWN[path].__annotations__)
    assert known - {*TAKEN[path], *REFUSED[path]} == set()
    assert not TAKEN[path].keys() & REFUSED[path].keys()


def asked(path: str, **more: Any) -> dict[str, Any]:
    least = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    needed = {name: TAKEN[path][name] for name in (*REQUIRED, least) if name in TAKEN[path]}
    return {**needed, **more}


@pytest.mark.parametrize("path", TAKEN)
def test_fields_are_taken_alone_and_together(server: Serving, path: str) -> None:
    for name, value in TAKEN[path].items():
        more = {"tools": TAKEN[path]["tools"]} if name == "tool_choice" else {}
        status, _, answer = server.ask(path, asked(path, **{name: value}, **more))
        assert status == 200, (name, answer)
        assert answer["model"] == "demo"
    status, _, answer = server.ask(path, TAKEN[path])
    assert status == 200, answer


@pytest.mark.parametrize("path", TAKEN)
def test_what_cannot_be_done_is_refused_by_name_unless_it_is_null(
    server: Serving, path: str
) -> None:
    for name, value in REFUSED[path].items():
        status, _, answer = server.ask(path, asked(path, **{name: value}))
        assert status == 400, name
        assert answer["error"]["param"].split(".")[0] == name
    nothing = dict.fromkeys(REFUSED[path])
    assert server.ask(path, asked(path, **nothing))[0] == 200


def test_an_embedding_has_no_field_that_is_not_tested() -> None:
    """Each of them: tests/runtime/server/test_encoders.py."""
    known = get_type_hints(embedding_create_params.EmbeddingCreateParams)
    assert set(known) == {"input", "model", "dimensions", "encoding_format", "user"}
