"""uvicorn's HTTP protocol with bounds on what comes before a request is known, and a short way for
pieces of a streamed answer."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from paddock.runtime.server.event_stream import WRITE_NOW

MAX_HEADER_BYTES = 64 << 10
HEADER_S = 30.0
"""A request line and headers have to come within this time, on a new connection and a kept one."""

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


class BoundedHttp(HttpToolsProtocol):
    """Closes connections whose headers are too large, or never end."""

    _header_bytes = 0
    _in_headers = False
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        began_before = self._in_headers
        super().data_received(data)
        if began_before and self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.transport.write(TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope = self.scope
        scope["extensions"] = {WRITE_NOW: {"call": lambda body: self._write_now(scope, body)}}
        self._in_headers = True
        if self._header_timer is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._header_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _write_now(self, scope: HTTPScope, body: bytes) -> bool:
        """Write a piece of an answer that has begun, as `send` would if it need not wait."""
        cycle = self.cycle
        if (
            cycle.scope is not scope  # another request stands behind this one in the connection
            or self.flow.write_paused
            or cycle.disconnected
            or cycle.response_complete
            or not cycle.response_started
            or not cycle.chunked_encoding
        ):
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_S, self._headers_never_came)

    def _headers_never_came(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
