"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

DONE = b"data: [DONE]\n\n"


def event(data: str, name: str | None = None) -> bytes:
    """One event; `data` is one line (JSON)."""
    text = f"data: {data}\n\n" if name is None else f"event: {name}\ndata: {data}\n\n"
    return text.encode()


class ClientGone(Exception):
    """Nobody is there to read the answer."""


class EventStream(Response):
    """An answer that is sent piece by piece.

    The generator is closed at once when the client disconnects, whether or not a piece is on its
    way, and when the client takes nothing for `write_timeout_s`. What is sent is what has come
    meanwhile: a slow reader holds up nobody but itself.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], *, write_timeout_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._write_timeout_s = write_timeout_s
        self._writing_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        sending = asyncio.ensure_future(self._send_all(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
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
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        with contextlib.suppress(OSError):  # disconnected while writing
            async for piece in self._events:
                self._writing_since = now()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                self._writing_since = None
            await send({"type": "http.response.body", "body": b"", "more_body": False})

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


async def while_connected(request: Request, answer: Awaitable[Answer]) -> Answer:
    """Wait for an answer; it is cancelled, and `ClientGone` raised, when the client leaves."""
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnected(request.receive))
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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
