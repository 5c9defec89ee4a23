"""What belongs to one HTTP request: its id, its log line, its part of a trace."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddock.runtime.server.api_errors import ApiError, as_api_error
from paddock.runtime.server.event_stream import event
from paddock.runtime.server.usage import Usage

access_log = logging.getLogger("paddock.access")
logger = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being worked on; log lines have it."""

_PROBES = frozenset({"/health", "/ready", "/metrics", "/stats"})
"""Asked every few seconds: they make a line only when something is wrong."""
_SOUND_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class RequestContext:
    """Kept in the ASGI scope."""

    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))
    usage: Usage | None = None
    """Set once it is known."""
    error: str | None = None
    """What went wrong midway, as the API names it."""
    first_byte_seen: bool = False

    def failed_midway(self, answer: ApiError, error: BaseException) -> bytes:
        """The last event of a stream that fails after its status was sent."""
        self.error = answer.detail.code or answer.detail.type
        if answer.status >= 500:
            logger.error("an answer failed midway: %s", error, exc_info=error)
        return event(json.dumps(answer.body))


def context_of(request: Request) -> RequestContext:
    found: RequestContext = request.scope["paddock.context"]
    return found


class RequestContexts:
    """Middleware: gives every request an id (a sound `X-Request-Id` is kept), and a log line.

    What no handler took is answered here with 500. Neither bodies nor headers nor query strings are
    logged.
    """

    def __init__(self, app: ASGIApp, *, log: bool) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        own_id = given if _SOUND_ID.fullmatch(given) else uuid.uuid4().hex
        context = scope["paddock.context"] = RequestContext(own_id)
        token = request_id.set(own_id)
        started = time.perf_counter()
        status = 0
        complete = False

        async def observe(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = own_id
            elif not message.get("more_body", False):
                complete = True
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except Exception as error:
            # Nobody below knew what to do with it: a mistake of ours, which must not end more
            # than this request.
            logger.exception("a request failed")
            context.error = "internal_error"
            if not status:
                answer = as_api_error(error)
                await JSONResponse(answer.body, answer.status)(scope, receive, observe)
        finally:
            if self._log and not (scope["path"] in _PROBES and status == 200):
                self._tell(scope, context, status, complete, time.perf_counter() - started)
            request_id.reset(token)

    def _tell(
        self, scope: Scope, context: RequestContext, status: int, complete: bool, seconds: float
    ) -> None:
        facts: dict[str, object] = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status or 499,  # nginx's number for a client that left
            "duration_s": round(seconds, 4),
        }
        if not complete:
            facts["cut_off"] = True
        if context.usage is not None:
            facts["prompt_tokens"] = context.usage.prompt_tokens
            facts["completion_tokens"] = context.usage.completion_tokens
        if context.error is not None:
            facts["error"] = context.error
        access_log.info("request", extra={"facts": facts})
