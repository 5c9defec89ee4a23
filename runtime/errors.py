"""The errors of this room: what was asked wrongly, or cannot be had now."""

from paddock.graph.errors import PaddockError


class LimitsError(PaddockError):
    """The limits of an engine loop do not hold together."""


class RequestError(PaddockError):
    """A request cannot be taken, or did not end as it should."""


class RequestTooLarge(RequestError):
    """A request that would never fit, however long it waited."""


class QueueFull(RequestError):
    """The queue is at its bound: the same request may be taken later (HTTP 429)."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LoopClosed(RequestError):
    """The engine loop takes no requests any more."""


class RequestFailed(RequestError):
    """The engine, or the handling of its output, failed while it worked on a request."""
