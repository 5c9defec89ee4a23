"""Errors as OpenAI's API reports them, and which of ours is which."""

from __future__ import annotations

import math
import re
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


_BRANCH = re.compile(r"[A-Z]\w*|constrained-\w+|.*\[[^\]].*|str|int|float|bool|dict|list|none")
"""What pydantic calls the branches of a union in an error's place; fields are in lower case, and
those of forms that are lists end with `[]`."""


def of_validation(errors: list[Any]) -> ApiError:
    """The one of pydantic's problems that says most, in one line, with the field as `param`."""
    told = max(errors, key=_says)
    where = [] if told["type"] == "json_invalid" else _place(told)
    message = str(told["msg"]).removeprefix("Value error, ")
    match told["type"]:
        case "extra_forbidden":
            message = "there is no such field"
        case "none_required":
            message = "this server cannot do that; leave it out"
        case "literal_error" if isinstance(told["input"], str):
            message += f", found {told['input'][:64]!r}"
        case "json_invalid":
            message = f"the body is not JSON: {told.get('ctx', {}).get('error', message)}"
        case "model_attributes_type" | "missing" if not where:
            message = "the body has to be a JSON object"
    others = len({tuple(_place(error)) for error in errors} - {tuple(where)})
    field = ".".join(where)
    more = f" (and {others} more)" if others and told["type"] != "json_invalid" else ""
    text = f"{field}: {message}{more}" if field else f"{message}{more}"
    return ApiError(400, text, param=field or None)


def _says(error: Any) -> tuple[bool, bool, bool, int]:
    """How much an error says, where a value is wrong for every branch of a union: what an item's
    `type` may be, then a name that is not known, then what is wrong in a value of the right type,
    then what lies deepest."""
    kind, where = error["type"], error["loc"]
    wrong_type = kind in ("union_tag_invalid", "unknown_item") or (
        kind == "literal_error" and where[-1] == "type"
    )
    return wrong_type, kind == "extra_forbidden", not kind.endswith("_type"), len(where)


def _place(error: Any) -> list[str]:
    """The fields to the value, without the branches of unions between them."""
    where = [str(step) for step in error["loc"] if step != "body"]
    return [step for step in where if not _BRANCH.fullmatch(step)]


def of_pydantic(error: ValidationError) -> ApiError:
    """The same of an error that pydantic raised."""
    return of_validation(error.errors(include_url=False, include_context=False))
