"""Errors as OpenAI's API reports them, and which of ours is which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from paddock.graph.errors import PaddockError
from paddock.runtime.errors import LoopClosed, QueueFull, RequestError, RequestTooLarge
from paddock.runtime.errors import RequestFailed as EngineFailed
from paddock.runtime.sampling.constraint import ConstraintError
from paddock.runtime.sampling.logprobs import LogitsError


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": self.detail.model_dump()}


UNEXPECTED = "the server failed on this request; its log has the reason under the request's id"


def as_api_error(error: BaseException) -> ApiError:
    """The answer to a request that ended with `error`."""
    match error:
        case ApiError():
            return error
        case RequestTooLarge():
            return ApiError(400, str(error), code="context_length_exceeded")
        case QueueFull():
            return ApiError(
                429,
                str(error),
                type="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(max(1, math.ceil(error.retry_after_s)))},
            )
        case LoopClosed():
            return unavailable("the server is shutting down or its engine has stopped")
        case EngineFailed():
            if _is_the_requests_own(error.__cause__):
                return ApiError(400, str(error))
            return ApiError(500, str(error), type="server_error", code="engine_error")
        case RequestError():
            return ApiError(400, str(error))
        case PaddockError():
            return ApiError(400, str(error))
        case _:
            return ApiError(500, UNEXPECTED, type="server_error", code="internal_error")


def _is_the_requests_own(error: BaseException | None) -> bool:
    """Whether settings of the request left nothing to choose: a grammar, bans, bias."""
    if isinstance(error, LogitsError):
        return isinstance(error.__cause__, ConstraintError) or "banned" in str(error)
    return isinstance(error, ConstraintError)


def unavailable(message: str) -> ApiError:
    """503: the same request may succeed elsewhere, or later."""
    return ApiError(
        503, message, type="server_error", code="unavailable", headers={"Retry-After": "5"}
    )


def of_validation(errors: list[Any]) -> ApiError:
    """The first of pydantic's problems, in one line, with the field as `param`."""
    # A name that is not known says more than what its value then is in a union.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    where = [str(step) for step in first["loc"] if step != "body"]
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such field"
    field = ".".join(where)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    text = f"{field}: {message}{more}" if field else f"{message}{more}"
    return ApiError(400, text, param=field or None)


def of_pydantic(error: ValidationError) -> ApiError:
    """The same of an error that pydantic raised."""
    return of_validation(error.errors(include_url=False, include_context=False))
