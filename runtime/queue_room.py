"""Handing work to a loop whose queue may be full, and waiting for room there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from paddock.runtime.errors import QueueFull

Submitted = TypeVar("Submitted")


class Queue(Protocol):
    """Of an engine's loop, whichever kind."""

    @property
    def departures(self) -> int:
        """How much has left the queue so far."""

    def wait_for_room(self, departures: int, timeout_s: float | None = None) -> None:
        """After `QueueFull`: return when something has left the queue since `departures` did."""


def when_there_is_room(queue: Queue, submit: Callable[[], Submitted]) -> Submitted:
    """What `submit` gives once it does not raise `QueueFull`."""
    while True:
        departures = queue.departures
        try:
            return submit()
        except QueueFull:
            queue.wait_for_room(departures)


async def when_there_is_room_async(queue: Queue, submit: Callable[[], Submitted]) -> Submitted:
    """The same, beside an event loop."""
    while True:
        departures = queue.departures
        try:
            return submit()
        except QueueFull:
            # For a second at most, so that a thread does not outlive a cancelled task for long.
            await asyncio.to_thread(queue.wait_for_room, departures, 1.0)
