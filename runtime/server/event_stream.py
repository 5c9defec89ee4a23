"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from paddock.runtime.handle import RequestHandle, Subscriber
from paddock.runtime.outputs import Increment
from paddock.runtime.scheduling.request import FinishReason

logger = logging.getLogger(__name__)

WRITE_NOW = "paddock.write_now"
"""The extension of an ASGI scope whose `call` is a `WriteNow`, where what runs the application has
one."""
WriteNow = Callable[[bytes], bool]
"""Writes a piece of a streamed answer at once. False: it would have to wait; nothing is written."""

Answer = TypeVar("Answer")

DONE = b"data: [DONE]\n\n"


def event(data: str, name: str | None = None) -> bytes:
    """One event; `data` is one line (JSON)."""
    text = f"data: {data}\n\n" if name is None else f"event: {name}\ndata: {data}\n\n"
    return text.encode()


class Template:
    """An event of which only one text changes: all else is made once."""

    def __init__(self, make: Callable[[str], str]) -> None:
        """`make`: the event's data with a given text in it, as JSON."""
        mark = secrets.token_hex(16)
        self._before, self._after = event(make(mark)).split(to_json(mark))

    def fill(self, text: str) -> bytes:
        """The event with this text."""
        return self._before + to_json(text) + self._after


class ClientGone(Exception):
    """Nobody is there to read the answer."""


class Events(Protocol):
    """What is told of requests as they go on, as the bytes of server-sent events."""

    def begin(self) -> bytes:
        """Before anything has come."""

    def push(self, number: int, increment: Increment) -> bytes:
        """What came of the request of this number. Raises where there is no answer."""

    def end(self) -> bytes:
        """After the last of all of them."""

    def fail(self, error: Exception) -> bytes:
        """In place of the rest."""


class EventStream(Response):
    """An answer that is sent piece by piece, while its requests run.

    They are cancelled at once when the client disconnects, whether or not a piece is on its way,
    and when it takes nothing for `write_timeout_s`. What is sent is what has come meanwhile: a
    slow reader holds up nobody but itself.

    While the client keeps up, what has come is written where the engine's loop tells of it, and no
    task is woken: with many streams, waking them was most of the work of a token. Otherwise, and
    at the end, a task writes the ASGI way and waits as long as it has to.
    """

    media_type = "text/event-stream"

    def __init__(
        self, handles: Sequence[RequestHandle], events: Events, *, write_timeout_s: float
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._handles = handles
        self._events = events
        self._write_timeout_s = write_timeout_s
        self._writing_since: float | None = None
        self._open = dict(enumerate(handles))
        self._pieces: list[bytes] = []
        self._error: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None
        """Set while the task has nothing to do."""
        self._write_now: WriteNow = _cannot
        self._called = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write_now = scope.get("extensions", {}).get(WRITE_NOW, {}).get("call", _cannot)
        with contextlib.ExitStack() as cancelling:
            for handle in self._handles:
                cancelling.enter_context(handle)
                cancelling.callback(handle.subscribe, None)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await self._while_connected(receive, send)

    async def _while_connected(self, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send))
        leaving = asyncio.ensure_future(disconnected(receive))
        try:
            while not sending.done() and not leaving.done() and not self._stuck():
                # Looking now and then costs less than a timer for each piece.
                await asyncio.wait(
                    (sending, leaving),
                    timeout=self._write_timeout_s / 4,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _send_all(self, send: Send) -> None:
        event_loop = asyncio.get_running_loop()
        subscriber = Subscriber(
            event_loop, self._go_on if len(self._handles) == 1 else self._go_on_soon
        )
        for handle in self._handles:
            handle.subscribe(subscriber)
        self._pieces.append(self._events.begin())
        with contextlib.suppress(OSError):  # disconnected while writing
            while self._collect():
                if any(self._pieces):
                    await self._write(send, more=True)
                    continue
                self._waiting = event_loop.create_future()
                await self._waiting
                self._waiting = None
            self._pieces.append(self._last())
            await self._write(send, more=False)

    def _go_on(self) -> Callable[[], None] | None:
        """Something has come. Returns how to write it, where no task has to be woken for that."""
        if self._waiting is None or self._waiting.done():
            return None  # it looks for itself before it waits again
        if not self._collect():
            self._waiting.set_result(None)
            return None
        return self._write_collected

    def _write_collected(self) -> None:
        body = b"".join(self._pieces)
        if not body or self._write_now(body):
            self._pieces.clear()
        elif self._waiting is not None:
            self._waiting.set_result(None)

    def _go_on_soon(self) -> None:
        """The same once for what a step brings to several requests."""
        if not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._go_on_now)

    def _go_on_now(self) -> None:
        self._called = False
        write = self._go_on()
        if write is not None:
            write()

    def _collect(self) -> bool:
        """Make events of what has come; false: nothing more will."""
        try:
            for number, handle in list(self._open.items()):
                while (increment := handle.take_ready()) is not None:
                    self._pieces.append(self._events.push(number, _without_error(increment)))
                if handle.finished:
                    del self._open[number]
        except Exception as error:
            self._error = error
            self._open.clear()
        return bool(self._open)

    def _last(self) -> bytes:
        if self._error is None:
            try:
                return self._events.end()
            except Exception as error:
                self._error = error
        return self._events.fail(self._error)

    async def _write(self, send: Send, *, more: bool) -> None:
        body = b"".join(self._pieces)
        self._pieces.clear()
        self._writing_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._writing_since = None

    def _stuck(self) -> bool:
        """Whether the client has taken nothing for too long."""
        since = self._writing_since
        stuck = (
            since is not None and asyncio.get_running_loop().time() - since > self._write_timeout_s
        )
        if stuck:
            logger.warning(
                "the client took nothing for %g s: it is disconnected", self._write_timeout_s
            )
        return stuck


def _cannot(body: bytes) -> bool:
    return False


def _without_error(increment: Increment) -> Increment:
    """The text that came before an error, which is raised at the end."""
    if increment.finish_reason is FinishReason.ERROR:
        return dataclasses.replace(increment, finish_reason=None)
    return increment


async def while_connected(request: Request, answer: Awaitable[Answer]) -> Answer:
    """Wait for an answer; it is cancelled, and `ClientGone` raised, when the client leaves."""
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await working


async def disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
