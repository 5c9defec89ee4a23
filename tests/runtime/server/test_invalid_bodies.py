"""What is wrong in a body is named; nothing in it that changes the answer is passed over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.runtime.server.serving import Serving

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    COMPLETION: {"prompt": "Hi"},
    RESPONSE: {"input": "Hi"},
}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}


def says(**parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, parts]}


def asks(part: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("path", "more", "message"),
    [
        (
            CHAT,
            says(role="user", content=[{"type": "input_audio", "input_audio": {"data": "x"}}]),
            "messages.1.content.0: Input tag 'input_audio' found using 'type' does not match"
            " any of the expected tags: 'text', ",
        ),
        (CHAT, says(role="user"), "messages.1: the user's message has no content"),
        (CHAT, says(role="tool", content=[]), "messages.1: the tool's message has no content"),
        (
            CHAT,
            says(role="assistant", function_call={"name": "f", "arguments": "{}"}),
            "messages.1.function_call: this server cannot do that; leave it out",
        ),
        (CHAT, says(role="assistant", audio={"id": "x"}), "messages.1.audio: this server cannot"),
        (CHAT, says(role="function", content="3"), "messages.1.role: Input should be 'system', "),
        (
            CHAT,
            {"tools": [{"type": "custom", "custom": {"name": "x"}}]},
            "tools.0.type: Input should be 'function', found 'custom' (and 2 more)",
        ),
        (
            CHAT,
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice.type: Input should be 'function', found 'allowed_tools' (and ",
        ),
        (CHAT, {"tool_choice": "any"}, "tool_choice: Input should be 'none', 'auto' or 'required'"),
        (CHAT, {"stop": ""}, "stop: String should have at least 1 character"),
        (CHAT, {"temprature": 1}, "temprature: there is no such field"),
        (CHAT, {"functions": [FUNCTION]}, "functions: this server cannot do that; leave it out"),
        (COMPLETION, {"prompt": [1, "a"]}, "prompt.1: Input should be a valid integer"),
        (COMPLETION, {"suffix": "b"}, "suffix: Input should be '', found 'b'"),
        (RESPONSE, {"input": []}, "input: List should have at least 1 item"),
        (
            RESPONSE,
            {"input": [{"type": "item_reference", "id": "x"}]},
            "input.0: Input should be a message, function_call, function_call_output or reasoning",
        ),
        (
            RESPONSE,
            asks({"type": "input_file", "file_id": "x"}),
            "input.0.message.content.0: Input tag 'input_file' found using 'type' does not match"
            " any of the expected tags: 'text', ",
        ),
        (
            RESPONSE,
            asks({"type": "input_image", "image_url": "x", "file_id": "x"}),
            "input.0.message.content.0.input_image.file_id: this server cannot do that",
        ),
        (RESPONSE, {"input": [{"role": "user", "content": []}]}, "input.0.message.content: List "),
        (RESPONSE, {"tools": [{"type": "web_search"}]}, "tools.0.type: Input should be 'function'"),
        (RESPONSE, {"truncation": "auto"}, "truncation: Input should be 'disabled', found 'auto'"),
    ],
)
def test_the_field_is_named_and_what_it_may_be(
    server: Serving, path: str, more: dict[str, Any], message: str
) -> None:
    status, _, answer = server.ask(path, {"model": "demo", **LEAST[path], **more})
    assert status == 400
    assert answer["error"]["message"].startswith(message)
    assert answer["error"]["param"] == message.split(":")[0]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"", "application/json", "the body has to be a JSON object"),
        (b"[]", "application/json", "the body has to be a JSON object"),
        (b"{", "application/json", "the body is not JSON: EOF while parsing"),
        (b"\xff", "application/json", "the body is not JSON: "),
        (
            b'{"model": "demo"}',
            "application/x-www-form-urlencoded",
            "Content-Type has to be application/json, found 'application/x-www-form-urlencoded'",
        ),
    ],
)
def test_what_is_no_body_is_told_from_a_wrong_one(
    server: Serving, body: bytes, kind: str, message: str
) -> None:
    status, _, answer = server.ask(CHAT, body, {"Content-Type": kind})
    assert status == 400
    assert answer["error"]["message"].startswith(message)
    assert answer["error"]["param"] is None


def test_a_refusal_is_part_of_the_conversation(server: Serving) -> None:
    """An answer that a client got elsewhere and sends back."""

    def tokens(**said: Any) -> Any:
        conversation = says(role="assistant", **said)
        return server.ask("/tokenize", {"model": "demo", **conversation})[2]["tokens"]

    refused = tokens(content=None, refusal="I will not.", function_call=None, audio=None)
    assert refused == tokens(content="I will not.")
    assert refused != tokens(content=None)


def test_the_document_says_what_fields_mean(server: Serving) -> None:
    schemas = server.ask("/openapi.json")[2]["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["top_k"]["description"] == "0 and -1 are off."
    assert "template sees the word" in json.dumps(schemas["ChatRequest"]["properties"])
