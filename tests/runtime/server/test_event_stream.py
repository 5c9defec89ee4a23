"""Pieces of a stream go two ways, at once or by a task that waits: what arrives is the same."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from paddock.runtime.server.bounded_http import BoundedHttp
from paddock.runtime.server.completion_schema import Completion, CompletionChoice
from paddock.runtime.server.event_stream import Template, event
from tests.runtime.server.in_process import InProcess, serve_in_process

HELLO = [{"role": "user", "content": "What does ls do?"}]
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", {"prompt": "The ls command", "max_tokens": 40}),
    "several": ("/v1/completions", {"prompt": ["A", "The", "On"], "n": 2, "max_tokens": 20}),
    "chat": ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 40}),
    "response": ("/v1/responses", {"input": "What does ls do?", "max_output_tokens": 40}),
}


@pytest.fixture(scope="module")
def inside(server_home: Path) -> Iterator[InProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDOCK_HOME", str(server_home))
        with serve_in_process("limits.max_sequences=8") as started:
            yield started


def told(server: InProcess, name: str) -> dict[int, str]:
    """The text of each choice."""
    path, body = ASKED[name]
    status, _, text = server.ask(path, {"model": "demo", "stream": True, "seed": 1, **body})
    assert status == 200
    texts: dict[int, str] = {}
    for line in re.findall(r"^data: (\{.*)$", text, re.MULTILINE):
        found = json.loads(line)
        if found.get("type") == "response.output_text.delta":
            texts[0] = texts.get(0, "") + found["delta"]
        for choice in found.get("choices", ()):
            piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
    assert re.search(r"data: \[DONE\]|event: response\.(completed|incomplete)", text)
    return texts


@pytest.mark.parametrize("name", ASKED)
def test_both_ways_write_the_same(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_now, written = BoundedHttp._write_now, []

    def seen(self: BoundedHttp, scope: Any, body: bytes) -> bool:
        done = write_now(self, scope, body)
        written.append(done)
        return done

    monkeypatch.setattr(BoundedHttp, "_write_now", seen)
    at_once = told(inside, name)
    assert any(written)  # the short way is the usual one
    monkeypatch.setattr(BoundedHttp, "_write_now", lambda self, scope, body: False)
    assert told(inside, name) == at_once
    assert all(at_once.values())


def test_requests_in_a_row_are_answered_in_their_order(inside: InProcess) -> None:
    """The second stands in the connection while the first is answered (HTTP pipelining)."""
    address = urlsplit(inside.url)
    assert address.hostname is not None
    asked = b""
    for number, length in enumerate((60, 5)):
        body = json.dumps(
            {
                "model": "demo",
                "prompt": f"Number {number}",
                "max_tokens": length,
                "stream": True,
                "ignore_eos": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        asked += (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: n%d\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        ) % (number, len(body), body)
    with socket.create_connection((address.hostname, address.port or 80), timeout=30) as connection:
        connection.sendall(asked)
        found = b""
        while found.count(b"[DONE]") < 2:
            more = connection.recv(65536)
            assert more
            found += more
    first, second = found.split(b"HTTP/1.1 200 OK\r\n")[1:]
    for number, length, answer in ((0, 60, first), (1, 5, second)):
        assert b"x-request-id: n%d" % number in answer
        assert b'"completion_tokens":%d' % length in answer
        assert set(re.findall(rb'"id":"cmpl-(\w+)"', answer)) == {b"n%d" % number}


def test_a_token_without_text_of_its_own_is_an_event_too(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a character waits for the rest, and a client that times tokens sees it come."""
    half = inside.served.tokenizer.token_id("\N{LATIN SMALL LETTER ETH}")  # byte 0xF0 begins four
    assert half is not None
    steps = inside.session.run

    def slowly(step: Any) -> Any:
        time.sleep(0.05)  # so that no two tokens go together
        return steps(step)

    monkeypatch.setattr(inside.session, "run", slowly)
    _, _, text = inside.ask(
        "/v1/completions",
        {
            "model": "demo",
            "prompt": "A",
            "max_tokens": 4,
            "stream": True,
            "ignore_eos": True,
            "logit_bias": {str(half): 100},
        },
    )
    lines = re.findall(r"^data: (\{.*)$", text, re.MULTILINE)
    texts = [json.loads(line)["choices"][0]["text"] for line in lines]
    assert len(texts) == 4
    assert texts[0] == ""
    assert "".join(texts) == "\N{REPLACEMENT CHARACTER}" * 4


@pytest.mark.parametrize("text", ["plain", 'a "quoted" \\ one\n\t\x00\x7f', "ünï \u2028 😀", ""])
def test_a_template_is_what_the_model_would_be(text: str) -> None:
    def made(text: str) -> str:
        choice = CompletionChoice(index=3, text=text)
        return Completion(id="a", created=1, model="m", choices=[choice]).model_dump_json()

    assert Template(made).fill(text) == event(made(text))
