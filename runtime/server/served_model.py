"""A served model that writes text, and the way to ask it from the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any
from weakref import WeakSet

from paddock.runtime.handle import RequestHandle
from paddock.runtime.images.prepared import ImagePrompt
from paddock.runtime.loop import Loop
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.server.formats import reasoning, tool_formats
from paddock.runtime.server.served import Served, Watched
from paddock.runtime.server.token_texts import TokenTexts
from paddock.runtime.speech.listening import Hearing
from paddock.runtime.speech.sound_prompt import SoundPrompt


@dataclass(frozen=True)
class Ask:
    """What one prompt asks of the loop: the arguments of `Loop.submit`."""

    prompt: Sequence[int] | ImagePrompt | SoundPrompt
    params: SamplingParams
    priority: int
    deadline_s: float | None
    request_id: str
    cache_salt: str


@dataclass(kw_only=True)
class ServedModel(Served):
    loop: Loop
    block_size: int
    """Tokens of a cache block."""
    sampling_defaults: Mapping[str, Any]
    hearing: Hearing | None = None
    """Of a model that hears, which is asked for nothing else."""
    _handles: WeakSet[RequestHandle] = field(default_factory=WeakSet)

    @property
    def chats(self) -> bool:
        return self.hearing is None

    @property
    def watched(self) -> Watched:
        return self.loop

    @property
    def max_context(self) -> int:
        return self.loop.limits.max_context

    @cached_property
    def token_texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer)

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

    async def submit(
        self, ask: Callable[[], Sequence[Ask]], *, begun: bool = False
    ) -> list[RequestHandle]:
        """Queue all that `ask`, run beside the event loop, comes to; all of it or nothing.

        `begun`: see `prepare`. Raises what `ask` and `Loop.submit` raise.
        """
        work = _Submission(self.loop, ask)
        try:
            handles = await self.prepare(work.run, begun=begun)
            self._handles.update(handles)
            return handles
        except BaseException:  # a client that left while this was tokenized
            work.abandon()
            raise

    def cancel_all(self) -> None:
        """End what runs, as it is."""
        for handle in list(self._handles):
            handle.cancel()


class _Submission:
    """Queues requests in a thread, for somebody who may have left meanwhile."""

    def __init__(self, loop: Loop, ask: Callable[[], Sequence[Ask]]) -> None:
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
