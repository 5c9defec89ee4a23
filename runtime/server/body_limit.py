"""Middleware that refuses bodies that are too large, where they say so unread, or too slow."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddock.runtime.server.api_errors import ApiError


class BodyLimit:
    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            refusal = ApiError(413, self._message, code="body_too_large")
            await JSONResponse(refusal.body, 413)(scope, receive, send)
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
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, counted, send)

    @property
    def _message(self) -> str:
        return f"the body is larger than {self._max_bytes} bytes (server.max_body_mib)"
