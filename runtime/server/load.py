"""A load client: many streams at once, as cheap as they can be, so that the server is measured.

It speaks HTTP/1.1 to `/v1/completions` over connections of its own, and notes when each piece came.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np

_PIECE = b"data: {"
_COUNT = re.compile(rb'"completion_tokens":(\d+)')


class LoadError(Exception):
    """The server could not be asked."""


@dataclass
class Stream:
    """What came of one request. Times are of `time.perf_counter`."""

    sent: float
    status: int = 0
    pieces: list[float] = field(default_factory=list)
    """When each piece of text was there; one token each, unless the server was ahead."""
    ended: float = 0.0
    tokens: int = 0

    @property
    def to_first_s(self) -> float:
        return self.pieces[0] - self.sent

    @property
    def between_s(self) -> list[float]:
        return [b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)]


@dataclass(frozen=True)
class Load:
    """What every request asks: `prompt_tokens` random tokens, continued by `new_tokens`."""

    model: str
    vocab_size: int
    prompt_tokens: int
    new_tokens: int
    key: str | None = None

    def body(self, random: np.random.Generator) -> bytes:
        prompt = random.integers(0, self.vocab_size, self.prompt_tokens).tolist()
        asked: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(asked).encode()


async def together(url: str, load: Load, count: int, *, seed: int = 0) -> list[Stream]:
    """`count` streams that begin at once."""
    random = np.random.default_rng(seed)
    bodies = [load.body(random) for _ in range(count)]
    return list(await asyncio.gather(*(_ask(url, load, body) for body in bodies)))


async def at_rate(url: str, load: Load, rate: float, count: int, *, seed: int = 0) -> list[Stream]:
    """`count` requests that arrive at random, `rate` a second on average (a Poisson process).

    A request is sent when its time has come, however many others are under way.
    """
    random = np.random.default_rng(seed)
    waits = random.exponential(1 / rate, count).tolist()
    bodies = [load.body(random) for _ in range(count)]
    asking = []
    for wait, body in zip(waits, bodies, strict=True):
        asking.append(asyncio.ensure_future(_ask(url, load, body)))
        await asyncio.sleep(wait)
    return list(await asyncio.gather(*asking))


async def _ask(url: str, load: Load, body: bytes) -> Stream:
    parts = urlsplit(url)
    event_loop = asyncio.get_running_loop()
    stream = Stream(sent=time.perf_counter())
    done: asyncio.Future[None] = event_loop.create_future()
    key = f"Authorization: Bearer {load.key}\r\n" if load.key else ""
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        transport, _ = await event_loop.create_connection(
            lambda: _Reading(stream, done), parts.hostname or "localhost", parts.port or 80
        )
    except OSError as error:
        raise LoadError(f"{url}: {error.strerror or error}") from None
    try:
        transport.write(head.encode() + body)
        await done
    finally:
        transport.close()
    return stream


class _Reading(asyncio.Protocol):
    """Reads one answer."""

    def __init__(self, stream: Stream, done: asyncio.Future[None]) -> None:
        self._stream = stream
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self._last = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(LoadError("the server closed the connection"))

    def on_headers_complete(self) -> None:
        self._stream.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        found = data.count(_PIECE)
        if found:
            self._stream.pieces += [time.perf_counter()] * found
            self._last = data

    def on_message_complete(self) -> None:
        stream = self._stream
        stream.ended = time.perf_counter()
        counts = _COUNT.findall(self._last)
        if counts:
            stream.tokens = int(counts[-1])
            stream.pieces.pop()  # the one that has the usage, and no text
        if not self._done.done():
            self._done.set_result(None)


def tokens_per_s(streams: Sequence[Stream]) -> float:
    """Tokens of all, from the first request's sending to the last answer's end."""
    begun = min(stream.sent for stream in streams)
    ended = max(stream.ended for stream in streams)
    return sum(stream.tokens for stream in streams) / (ended - begun)
