"""Clients that leave: counted in steps of the engine, which the test lets run one by one."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from paddock.runtime.scheduling.request import Request
from tests.runtime.server.in_process import InProcess, serve_in_process

PROMPT = "The ls command lists the files of a directory, and so does the command dir. " * 3
LONG: dict[str, Any] = {"model": "demo", "max_tokens": 400, "ignore_eos": True, "prompt": PROMPT}
CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 400,
    "ignore_eos": True,
}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", LONG),
    "completion, streamed": ("/v1/completions", {**LONG, "stream": True}),
    "several, streamed": ("/v1/completions", {**LONG, "stream": True, "n": 3}),
    "several prompts": ("/v1/completions", {**LONG, "prompt": [PROMPT, "B " + PROMPT]}),
    "chat": ("/v1/chat/completions", CHAT),
    "chat, streamed": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "constrained": (
        "/v1/chat/completions",
        {**CHAT, "structured_outputs": {"regex": "[a-z ]{99}"}},
    ),
    "response": ("/v1/responses", {"model": "demo", "input": PROMPT, "ignore_eos": True}),
    "response, streamed": (
        "/v1/responses",
        {"model": "demo", "input": PROMPT, "ignore_eos": True, "stream": True},
    ),
}


class Stepped:
    """A server whose engine waits, in each step, until the test lets it go on."""

    def __init__(self, server: InProcess, patch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.cancelled: list[Request] = []
        self._begun = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)
        self._free = False
        loop: Any = server.loop
        run, cancel = server.session.run, loop._cancel

        def wait_and_run(step: Any) -> Any:
            self._begun.release()
            if not self._free:
                assert self._allowed.acquire(timeout=20)
            return run(step)

        def seen(request: Request) -> None:
            cancel(request)
            self.cancelled.append(request)

        patch.setattr(server.session, "run", wait_and_run)
        patch.setattr(loop, "_cancel", seen)

    def wait_for_step(self) -> None:
        """Until the engine has begun a step."""
        assert self._begun.acquire(timeout=10)

    def end_step(self) -> None:
        self._allowed.release()

    def go_on(self) -> None:
        """Let the engine run by itself."""
        self._free = True
        self._allowed.release()

    def ask(self, path: str, body: dict[str, Any]) -> socket.socket:
        address = urlsplit(self.server.url)
        assert address.hostname is not None
        connection = socket.create_connection((address.hostname, address.port or 80), timeout=10)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        return connection

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not true():
            assert time.monotonic() < end, self.server.loop.stats()
            time.sleep(0.002)


@pytest.fixture
def stepped(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stepped]:
    monkeypatch.setenv("PADDOCK_HOME", str(server_home))
    with serve_in_process("limits.max_sequences=4", "server.stall_s=60") as server:
        made = Stepped(server, monkeypatch)
        try:
            yield made
        finally:
            made.go_on()


@pytest.mark.parametrize("name", ASKED)
def test_the_step_that_runs_is_the_last(stepped: Stepped, name: str) -> None:
    """A client leaves while its prompt is computed, or later: no further step has its request."""
    loop = stepped.server.loop
    path, body = ASKED[name]
    requests = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    for steps_before in (0, 1, 5):
        stepped.cancelled.clear()
        first = loop.stats().steps
        with stepped.ask(path, body):
            stepped.wait_for_step()
            for _ in range(steps_before):
                stepped.end_step()
                stepped.wait_for_step()
        stepped.until(lambda: len(stepped.cancelled) >= requests)  # the disconnect is seen
        seen = loop.stats()
        assert seen.steps == first + steps_before
        assert seen.blocks_held > 0
        stepped.end_step()
        stepped.until(lambda: loop.stats().blocks_held == 0)
        after = loop.stats()
        assert after.steps == seen.steps + 1
        assert (after.running, after.waiting, after.queued_requests) == (0, 0, 0)


def test_what_waits_is_gone_with_the_step_that_runs(stepped: Stepped) -> None:
    """Others fill the batch: a queued request ends at once, and they lose nothing."""
    loop = stepped.server.loop
    full = {**LONG, "n": 4, "stream": True}
    with stepped.ask("/v1/completions", full):
        stepped.wait_for_step()
        waiting = stepped.ask("/v1/completions", LONG)
        stepped.until(lambda: loop.stats().queued_requests == 1)
        stepped.end_step()
        stepped.wait_for_step()
        assert loop.stats().waiting > 0
        waiting.close()
        stepped.until(lambda: bool(stepped.cancelled))
        seen = loop.stats()
        stepped.end_step()
        stepped.wait_for_step()
        after = loop.stats()
        assert after.steps == seen.steps + 1
        assert (after.running, after.waiting, after.queued_requests) == (4, 0, 0)


def test_what_the_loop_has_not_taken_yet_is_never_run(stepped: Stepped) -> None:
    loop = stepped.server.loop
    with stepped.ask("/v1/completions", {**LONG, "stream": True}):
        stepped.wait_for_step()
        with stepped.ask("/v1/completions", LONG):
            stepped.until(lambda: loop.stats().queued_requests == 1)
        stepped.until(lambda: bool(stepped.cancelled))
        held = loop.stats().blocks_held
        stepped.end_step()
        stepped.wait_for_step()
        after = loop.stats()
        assert (after.running, after.waiting, after.queued_requests) == (1, 0, 0)
        assert after.blocks_held <= held + 1
