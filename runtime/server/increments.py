"""Increments of several requests as one stream, and how the API calls their ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Literal

from paddock.runtime.handle import RequestHandle
from paddock.runtime.outputs import Increment, RequestResult
from paddock.runtime.request import FinishReason
from paddock.runtime.server.api_errors import unavailable

Finish = Literal["stop", "length"]


async def merged(handles: Sequence[RequestHandle]) -> AsyncGenerator[tuple[int, Increment], None]:
    """Every increment with the number of its handle. On leaving, what is unfinished is cancelled.

    Taken no faster than the caller asks for them, so that those of a slow reader grow together.
    """
    with contextlib.ExitStack() as cancelling:
        for handle in handles:
            cancelling.enter_context(handle)
        if len(handles) == 1:
            async for increment in handles[0]:
                yield 0, _without_error(increment)
            return
        async for number, increment in _any_order(handles):
            yield number, _without_error(increment)


def _without_error(increment: Increment) -> Increment:
    """The text that came before an error, which is raised at the end."""
    if increment.finish_reason is FinishReason.ERROR:
        return dataclasses.replace(increment, finish_reason=None)
    return increment


async def _any_order(handles: Sequence[RequestHandle]) -> AsyncIterator[tuple[int, Increment]]:
    waiting = {asyncio.ensure_future(anext(h, None)): i for i, h in enumerate(handles)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                increment = task.result()
                if increment is None:
                    continue
                waiting[asyncio.ensure_future(anext(handles[number], None))] = number
                yield number, increment
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


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
