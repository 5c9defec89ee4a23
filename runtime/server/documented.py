"""What the OpenAPI document says of every route beside its own answer."""

from __future__ import annotations

from typing import Any

from paddock.runtime.server.api_errors import ErrorBody

_SAID = {
    400: "something in the request is wrong; `error.param` says where",
    401: "the API key is missing or wrong",
    403: "the request comes from a web page, or names a host, that this server does not serve",
    404: "there is no such model",
    408: "the body did not come in time",
    413: "the body is larger than this server takes",
    429: "too much is waiting; `Retry-After` says when to try again",
    500: "the server or its engine failed",
    503: "the server is shutting down, or its engine has stopped",
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that are no success, for `responses=`."""
    return {status: {"model": ErrorBody, "description": _SAID[status]} for status in statuses}


ALWAYS = failures(400, 401, 403, 408, 413, 500, 503)
GENERATING = failures(400, 401, 403, 404, 408, 413, 429, 500, 503)

_EVENT = {
    "type": "object",
    "description": "an event of the stream; its data is JSON, and `[DONE]` at the end",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}

STREAMED_OR_NOT: dict[int | str, dict[str, Any]] = {
    **GENERATING,
    200: {
        "description": "the answer, or with `stream` its pieces as server-sent events",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
}
