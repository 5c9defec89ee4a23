"""The bound on what may wait."""

import threading
from collections.abc import Callable

from paddock.runtime.errors import LoopClosed, QueueFull
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.request import Request


class Admission:
    """Counts requests that were never scheduled, and refuses what is too much. Thread-safe."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._queued: dict[int, int] = {}  # prompt tokens by request number
        self._tokens = 0
        self.departures = 0  # requests that left the queue so far
        self._last_leave: float | None = None
        self._leave_interval_s = 1.0
        self._closed: str | None = None

    @property
    def requests(self) -> int:
        """Requests that wait for their first step."""
        return len(self._queued)

    @property
    def tokens(self) -> int:
        """Prompt tokens of these."""
        return self._tokens

    def enter(self, request: Request) -> None:
        """Let a request wait. Raises `QueueFull`, or `LoopClosed` once closed."""
        count = request.prompt_length
        limits = self._limits
        with self._changed:
            if self._closed is not None:
                raise LoopClosed(self._closed)
            if len(self._queued) >= limits.max_queued_requests:
                raise QueueFull(
                    f"{len(self._queued)} requests are waiting, and limits.max_queued_requests is "
                    f"{limits.max_queued_requests}; try again later",
                    retry_after_s=self._leave_interval_s,
                )
            if self._queued and self._tokens + count > limits.max_queued_tokens:
                raise QueueFull(
                    f"{self._tokens} prompt tokens are waiting, {count} more would exceed "
                    f"limits.max_queued_tokens ({limits.max_queued_tokens}); try again later",
                    retry_after_s=self._leave_interval_s,
                )
            self._queued[request.number] = count
            self._tokens += count

    def leave(self, request: Request) -> None:
        """It is scheduled, or has ended. A second time does nothing."""
        with self._changed:
            tokens = self._queued.pop(request.number, None)
            if tokens is None:
                return
            self._tokens -= tokens
            self.departures += 1
            now = self._clock()
            if self._last_leave is not None:
                recent = min(max(now - self._last_leave, 0.0), 60.0)
                self._leave_interval_s += (recent - self._leave_interval_s) / 8
            self._last_leave = now
            self._changed.notify_all()

    def close(self, reason: str) -> None:
        """Refuse everything from now on."""
        with self._changed:
            self._closed = self._closed or reason
            self._changed.notify_all()

    def wait_for_departure(self, since: int, timeout_s: float | None = None) -> None:
        """Return when `departures` is more than `since`, or when closed, or after the time."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.departures > since or self._closed is not None, timeout_s
            )
