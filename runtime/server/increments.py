"""What requests came to, and how the API calls their ends."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

from paddock.runtime.handle import RequestHandle
from paddock.runtime.outputs import RequestResult
from paddock.runtime.scheduling.request import FinishReason
from paddock.runtime.server.api_errors import unavailable

Finish = Literal["stop", "length"]


async def results(handles: Sequence[RequestHandle]) -> list[RequestResult]:
    """Wait for all; what is unfinished is cancelled on leaving. Raises `RequestFailed`."""
    with contextlib.ExitStack() as cancelling:
        for handle in handles:
            cancelling.enter_context(handle)
        return [await handle.aresult() for handle in handles]


def finish_of(
    reason: FinishReason, stop_reason: int | str | None
) -> tuple[Finish, int | str | None]:
    """Finish and stop reason as the API has them. Raises `ApiError` where there is no answer."""
    match reason:
        case FinishReason.STOP:
            return "stop", stop_reason
        case FinishReason.LENGTH:
            return "length", None
        case FinishReason.DEADLINE:
            return "length", "deadline"
        case _:
            raise unavailable("the server is shutting down; the answer was cut off")
