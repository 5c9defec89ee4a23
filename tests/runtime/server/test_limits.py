"""What is too much, too large or too slow is refused, and nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.runtime.server.serving import Serving

LONG: dict[str, Any] = {"model": "demo", "prompt": "A", "max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def small(environment: dict[str, str], server_home: Path) -> Iterator[Serving]:
    with Serving(
        environment,
        server_home,
        "demo",
        "limits.max_sequences=2",
        "limits.max_queued_requests=3",
        "server.max_body_mib=0.05",
        "server.max_bodies_mib=0.12",
        "server.read_timeout_s=1.0",
        "server.write_timeout_s=2.0",
        "server.max_choices=8",
    ) as started:
        yield started


def connect(server: Serving) -> socket.socket:
    address = urlsplit(server.url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), timeout=30)


def request_bytes(path: str, body: Any, **headers: str) -> bytes:
    data = json.dumps(body).encode()
    named = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        **headers,
    }
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes the connection."""
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def test_a_full_queue_is_429_with_a_time_to_try_again(small: Serving) -> None:
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: small.ask("/v1/completions", LONG), range(12)))
    statuses = [status for status, _, _ in answers]
    assert statuses.count(200) >= 3  # as many may wait
    assert statuses.count(429) >= 1
    assert set(statuses) == {200, 429}
    for status, headers, body in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert body["error"]["code"] == "queue_full"
    small.wait_until(running=0, waiting=0, cache_use=0.0)


def test_the_clients_own_retries_get_there(small: Serving) -> None:
    """The official client waits as `Retry-After` says, so that all are answered in the end."""

    def ask(number: int) -> int:
        with small.client(max_retries=20) as client:
            answer = client.completions.create(
                model="demo", prompt=f"{number}", max_tokens=150, extra_body={"ignore_eos": True}
            )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [150] * 8


def test_several_prompts_are_queued_together_or_not_at_all(small: Serving) -> None:
    status, _, _ = small.ask("/v1/completions", {**LONG, "prompt": ["A"] * 8})
    assert status == 429
    small.wait_until(running=0, waiting=0, cache_use=0.0)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/completions", {"model": "demo", "prompt": "file " * 2000}, "max_context"),
        ("/v1/completions", {"model": "demo", "prompt": ["A"] * 3, "n": 3}, "8 at most"),
        (
            "/v1/chat/completions",
            {"model": "demo", "messages": [{"role": "user", "content": "A"}], "n": 9},
            "8 continuations",
        ),
        ("/v1/completions", {"model": "demo", "prompt": ["A", ""]}, "prompt"),
        ("/v1/completions", {"model": "demo", "prompt": [5000]}, "vocabulary"),
        ("/v1/completions", {"model": "demo", "prompt": "A", "stop_token_ids": [9999]}, "9999"),
    ],
)
def test_requests_are_bounded(small: Serving, path: str, body: Any, message: str) -> None:
    status, _, answer = small.ask(path, body)
    assert status == 400
    assert message in answer["error"]["message"], answer


def test_bodies_are_bounded_whether_or_not_they_say_their_size(small: Serving) -> None:
    body = {"model": "demo", "prompt": "x" * 100_000}
    status, _, answer = small.ask("/v1/completions", body)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    with connect(small) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            b"\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        try:
            for _ in range(30):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        except OSError:
            pass  # it was closed on us already
        assert b" 413 " in connection.recv(1 << 16).split(b"\r\n")[0]


def test_all_bodies_together_are_bounded(small: Serving) -> None:
    """Two that never end leave no room for a third, and it comes back when they are given up."""
    large = {"model": "demo", "prompt": "x" * 50_000, "max_tokens": 1}
    with connect(small) as one, connect(small) as two:
        for connection in (one, two):
            connection.sendall(request_bytes("/v1/completions", large)[:-5])
        time.sleep(0.2)
        status, headers, answer = small.ask("/v1/completions", large)
        assert (status, answer["error"]["code"]) == (429, "too_many_bodies")
        assert "retry-after" in headers
        assert small.ask("/v1/completions", {**large, "prompt": "A"})[0] == 200
        # Without saying its size it is refused as well, while it comes.
        with connect(small) as three:
            three.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
                b"Connection: close\r\n\r\n"
            )
            with contextlib.suppress(OSError):
                for _ in range(10):
                    three.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            assert b" 429 " in three.recv(1 << 16).split(b"\r\n")[0]
    small.wait_until(running=0, waiting=0)
    status, _, answer = small.ask("/v1/completions", large)
    assert status == 400  # it is read, and its prompt is too long
    assert "context" in answer["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(small: Serving) -> None:
    with connect(small) as connection:
        started = time.monotonic()
        connection.sendall(request_bytes("/v1/completions", LONG)[:-5])
        assert b" 408 " in connection.recv(1 << 16).split(b"\r\n")[0]
        assert 0.5 < time.monotonic() - started < 20


def test_headers_are_bounded(small: Serving) -> None:
    with connect(small) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        answer = b""
        try:
            for _ in range(100):
                connection.sendall(b"x" * 8192)
                time.sleep(0.001)
            answer = connection.recv(1 << 16)
        except OSError:
            pass  # closed on us while we were still sending: refused as well
        assert answer == b"" or b" 431 " in answer.split(b"\r\n")[0]
    assert small.ask("/health")[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "demo", "prompt": "\\ud800"}',
        b'{"model": "demo", "prompt": "A", "temperature": NaN}',
        b'{"model": "demo", "prompt": "A", "max_tokens": 1e400}',
        b"[" * 40_000,
        b'{"a":' * 8000 + b"1" + b"}" * 8000,
        b'{"model": "demo", "prompt": ' + b"9" * 5000 + b"}",
        b'{"model": "demo", "prompt": [99999999999999999999999]}',
        b'{"model": "demo", "prompt": "A", "n": 2.5}',
        b'{"model": "demo", "prompt": "A", "stop": ["", "x"]}',
        b'{"model": "demo", "prompt": "A", "logit_bias": {"x": 1}}',
        b'{"model": "demo", "prompt": "A", "logit_bias": {"5": 1000}}',
        b'{"model": "demo", "prompt": "A", "seed": 1.5}',
        b'{"model": "demo", "prompt": "A", "temprature": 1}',
    ],
)
def test_what_is_no_request_is_400_in_one_line(small: Serving, body: bytes) -> None:
    status, _, answer = small.ask("/v1/completions", body)
    assert status == 400, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert "\n" not in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 600


def test_a_client_that_leaves_frees_its_blocks_at_every_stage(small: Serving) -> None:
    """While it waits, while it runs, streamed or not; test_disconnects.py counts the steps."""
    for stream in (False, True):
        for _ in range(3):
            connections = [connect(small) for _ in range(5)]
            asked = request_bytes("/v1/completions", {**LONG, "stream": stream})
            for number, connection in enumerate(connections):
                connection.sendall(asked)
                small.wait_until(running=min(number + 1, 2), waiting=max(number - 1, 0))
            assert small.stats()["cache_use"] > 0
            left = time.monotonic()
            for connection in connections:
                connection.close()
            small.wait_until(running=0, waiting=0, queued_requests=0, cache_use=0.0)
            assert time.monotonic() - left < 1.5  # 900 tokens take longer


def test_a_client_that_leaves_before_its_request_is_read_leaves_nothing(small: Serving) -> None:
    before = small.stats()["requests_finished"]
    data = request_bytes("/v1/completions", LONG)
    for cut in range(0, len(data), 7):
        with connect(small) as connection:
            connection.sendall(data[:cut])
    for _ in range(20):
        with connect(small) as connection:
            connection.sendall(data)
    small.wait_until(running=0, waiting=0, queued_requests=0, cache_use=0.0)
    assert small.ask("/health")[0] == 200
    assert small.stats()["requests_finished"] >= before


def test_a_reader_that_stops_reading_holds_nobody_up(small: Serving) -> None:
    """Its own request goes on to its end, others at their speed, and it is disconnected."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    address = urlsplit(small.url)
    slow.connect((address.hostname, address.port))
    with slow:
        body = {**LONG, "stream": True, "n": 2, "logprobs": 50, "max_tokens": 800}
        slow.sendall(request_bytes("/v1/completions", body))
        small.wait_until(running=2)
        small.wait_until(running=0, cache_use=0.0)
        started = time.monotonic()
        status, _, answer = small.ask("/v1/completions", {**LONG, "max_tokens": 20})
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 20
        assert time.monotonic() - started < 5
        end = time.monotonic() + 20
        while "took nothing" not in small.log:
            assert time.monotonic() < end, small.log
            time.sleep(0.05)
        slow.settimeout(10)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := slow.recv(1 << 16):
                received += piece
        assert b"[DONE]" not in received


def test_many_connections_at_once(server: Serving) -> None:
    """Sixty-four streams together; each is its own answer."""

    def ask(number: int) -> tuple[int, str]:
        with (
            server.client() as client,
            client.completions.create(
                model="demo",
                prompt=f"File number {number % 8}",
                max_tokens=20,
                temperature=0,
                stream=True,
            ) as stream,
        ):
            return number % 8, "".join(chunk.choices[0].text for chunk in stream)

    with ThreadPoolExecutor(64) as threads:
        found = list(threads.map(ask, range(64)))
    assert len(set(found)) == 8
    assert len({number for number, _ in found}) == 8


def test_threads_of_the_server_do_not_grow(server: Serving) -> None:
    import psutil

    process = psutil.Process(server.process.pid)
    with server.client() as client:
        client.completions.create(model="demo", prompt="A", max_tokens=1)
        before = process.num_threads()
        for number in range(30):
            client.completions.create(model="demo", prompt=f"{number}", max_tokens=1)
    assert process.num_threads() <= before + 1
    assert threading.active_count() < 200


def test_the_official_client_names_the_errors(small: Serving) -> None:
    with small.client() as client:
        with pytest.raises(openai.NotFoundError, match="nobody"):
            client.completions.create(model="nobody", prompt="A")
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="demo", prompt="file " * 2000)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="demo", prompt="A", temperature=-1)
        assert caught.value.param == "temperature"
