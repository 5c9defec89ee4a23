"""What is served: a started model with its names, and the way to ask it from the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakSet

from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.errors import QueueFull
from paddock.runtime.handle import RequestHandle
from paddock.runtime.sampling_params import SamplingParams
from paddock.runtime.server import reasoning, tool_formats
from paddock.runtime.server.api_errors import ApiError, unavailable
from paddock.runtime.server.settings import ServerSettings
from paddock.runtime.server.token_texts import TokenTexts
from paddock.runtime.tokenizer import Tokenizer

Result = TypeVar("Result")

MAX_PREPARING = 256
"""Requests that are being tokenized or wait for it; the queue's own bound comes after that."""


@dataclass(frozen=True)
class Ask:
    """What one prompt asks of the loop: the arguments of `EngineLoop.submit`."""

    prompt: Sequence[int]
    params: SamplingParams
    priority: int
    deadline_s: float | None
    request_id: str
    cache_salt: str


@dataclass
class ServedModel:
    """`names`: what clients may call it, the first is what it answers with."""

    names: tuple[str, ...]
    loop: EngineLoop
    tokenizer: Tokenizer
    block_size: int
    """Tokens of a cache block."""
    sampling_defaults: Mapping[str, Any]
    settings: ServerSettings
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    """The server is shutting down and refuses new requests."""
    _closing: list[Callable[[], object]] = field(default_factory=list)
    _preparing: int = 0
    _handles: WeakSet[RequestHandle] = field(default_factory=WeakSet)
    _threads: ThreadPoolExecutor = field(
        # Tokenizing and rendering hold up neither the event loop nor, being few, the engine.
        default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="paddock-intake")
    )

    @property
    def name(self) -> str:
        return self.names[0]

    @cached_property
    def token_texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer)

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

    def tool_format(self, template: str) -> str:
        """How the model writes tool calls (see `tool_formats`)."""
        asked = self.settings.tool_format
        return tool_formats.detect(template) if asked == "auto" else asked

    def reasons(self, template: str) -> bool:
        """Whether the model may begin with reasoning."""
        asked = self.settings.reasoning
        return reasoning.template_reasons(template) if asked == "auto" else asked == "think"

    def deadline(self, asked: float | None) -> float | None:
        """Seconds a request may take: what it asks for and the server's bound both kept."""
        bounds = [s for s in (asked, self.settings.request_timeout_s) if s is not None]
        return min(bounds, default=None)

    async def prepare(self, work: Callable[[], Result]) -> Result:
        """Run what takes its time (tokenizing, templates, grammars) beside the event loop.

        Raises what `work` raises, and `QueueFull` where too many wait for that already.
        """
        if self.draining:
            raise unavailable("the server is shutting down")
        if self._preparing >= MAX_PREPARING:
            raise QueueFull(
                f"{self._preparing} requests are being read; try again later", retry_after_s=1.0
            )
        self._preparing += 1
        try:
            return await asyncio.wrap_future(self._threads.submit(work))
        finally:
            self._preparing -= 1

    async def submit(self, ask: Callable[[], Sequence[Ask]]) -> list[RequestHandle]:
        """Queue all that `ask`, run beside the event loop, comes to; all of it or nothing.

        Raises what `ask` and `EngineLoop.submit` raise.
        """
        work = _Submission(self.loop, ask)
        try:
            handles = await self.prepare(work.run)
            self._handles.update(handles)
            return handles
        except BaseException:  # a client that left while this was tokenized
            work.abandon()
            raise

    def cancel_all(self) -> None:
        """End what runs, as it is."""
        for handle in list(self._handles):
            handle.cancel()

    def on_close(self, action: Callable[[], object]) -> None:
        """Have something closed with this."""
        self._closing.append(action)

    def close(self) -> None:
        for action in self._closing:
            action()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Submission:
    """Queues requests in a thread, for somebody who may have left meanwhile."""

    def __init__(self, loop: EngineLoop, ask: Callable[[], Sequence[Ask]]) -> None:
        self._loop = loop
        self._ask = ask
        self._lock = Lock()
        self._handles: list[RequestHandle] = []
        self._abandoned = False

    def run(self) -> list[RequestHandle]:
        for one in self._ask():
            with self._lock:
                if self._abandoned:
                    break
                self._handles.append(
                    self._loop.submit(
                        one.prompt,
                        one.params,
                        priority=one.priority,
                        deadline_s=one.deadline_s,
                        request_id=one.request_id,
                        cache_salt=one.cache_salt,
                    )
                )
        return self._handles

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            for handle in self._handles:
                handle.cancel()
