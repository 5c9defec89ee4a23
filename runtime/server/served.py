"""What is served: a started model with its names, and what every kind of them has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from paddock.runtime.encoders.encoder import Encoder
from paddock.runtime.errors import QueueFull
from paddock.runtime.images.sight import Sight
from paddock.runtime.server.api_errors import ApiError, unavailable
from paddock.runtime.server.settings import ServerSettings
from paddock.runtime.text.tokenizer import Tokenizer

Result = TypeVar("Result")

MAX_PREPARING = 256
"""Requests that are being tokenized or wait for it; the queue's own bound comes after that."""


class Watched(Protocol):
    """An engine's loop as the watchdog sees it."""

    @property
    def alive(self) -> bool: ...

    @property
    def stalled_s(self) -> float: ...

    @property
    def ailments(self) -> Sequence[str]: ...


@dataclass(kw_only=True)
class Served:
    """`names`: what clients may call it, the first is what it answers with."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    settings: ServerSettings
    sight: Sight | None = None
    """Of a model that sees."""
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    """The server is shutting down and refuses new requests."""
    _closing: list[Callable[[], object]] = field(default_factory=list)
    _preparing: int = 0
    _threads: ThreadPoolExecutor = field(
        # Tokenizing and rendering hold up neither the event loop nor, being few, the engine.
        default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="paddock-intake")
    )

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def chats(self) -> bool:
        """Whether it answers conversations."""
        return False

    @property
    def watched(self) -> Watched:
        """The loop whose steps mean that the server lives."""
        raise NotImplementedError

    @property
    def max_context(self) -> int:
        """Tokens of the longest sequence."""
        raise NotImplementedError

    def cancel_all(self) -> None:
        """End what runs, as it is."""

    def check_name(self, asked: str) -> None:
        """Raise a 404 for a model that is not served here."""
        if asked not in self.names:
            known = ", ".join(self.names)
            raise ApiError(
                404,
                f"no model is called {asked!r} here; this server has {known}",
                param="model",
                code="model_not_found",
            )

    def check_open(self) -> None:
        """Raise a 503 while the server is shutting down."""
        if self.draining:
            raise unavailable("the server is shutting down")

    async def prepare(self, work: Callable[[], Result], *, begun: bool = False) -> Result:
        """Run what takes its time (tokenizing, templates, grammars) beside the event loop.

        `begun`: of a request that has begun, and goes on while the server shuts down. Raises what
        `work` raises, and `QueueFull` where too many wait for that already.
        """
        if not begun:
            self.check_open()
        if self._preparing >= MAX_PREPARING:
            raise QueueFull(
                f"{self._preparing} requests are being read; try again later", retry_after_s=1.0
            )
        self._preparing += 1
        try:
            return await asyncio.wrap_future(self._threads.submit(work))
        finally:
            self._preparing -= 1

    def on_close(self, action: Callable[[], object]) -> None:
        """Have something closed with this."""
        self._closing.append(action)

    def close(self) -> None:
        for action in self._closing:
            action()
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(kw_only=True)
class ServedEncoder(Served):
    """A model that gives vectors, labels or scores."""

    encoder: Encoder

    @property
    def watched(self) -> Watched:
        return self.encoder.loop

    @property
    def max_context(self) -> int:
        return self.encoder.max_tokens
