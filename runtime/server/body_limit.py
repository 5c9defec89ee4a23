"""Middleware that refuses bodies that are too large, where they say so unread, or too slow, or too
many at once."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddock.runtime.server.api_errors import ApiError

_AGAIN = {"Retry-After": "1"}


class BodyLimit:
    """Bodies count as long as their requests are answered: towards `max_bytes` each
    (`max_audio_bytes` of sounds), and towards `max_total` all together, beyond which a request is
    told to come again."""

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, max_audio_bytes: int, max_total: int, seconds: float
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_audio_bytes = max_audio_bytes
        self._max_total = max_total
        self._total = 0
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        heard = scope["path"].startswith("/v1/audio/")
        most = self._max_audio_bytes if heard else self._max_bytes
        setting = "max_audio_mib" if heard else "max_body_mib"
        too_large = f"the body is larger than {most} bytes (server.{setting})"
        if length.isdecimal() and int(length) > most:
            refusal = ApiError(413, too_large, code="body_too_large")
            await JSONResponse(refusal.body, 413)(scope, receive, send)
            return
        if length.isdecimal() and self._total + int(length) > self._max_total:
            refusal = ApiError(429, self._full, code="too_many_bodies", headers=_AGAIN)
            await JSONResponse(refusal.body, 429, refusal.headers)(scope, receive, send)
            return
        read = 0
        whole = False
        end = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()  # the client leaves
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body did not come within {self._seconds:g} s"
                ) from None
            whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            read += size
            self._total += size
            if self._total > self._max_total:
                raise HTTPException(429, self._full, headers=_AGAIN)
            if read > most:
                raise HTTPException(413, too_large)
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._total -= read

    @property
    def _full(self) -> str:
        return (
            f"the bodies of the requests that are being answered are {self._total} bytes, and this"
            f" server takes {self._max_total} at once (server.max_bodies_mib); try again later"
        )
