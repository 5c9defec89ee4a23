"""What takes requests, whether one engine loop or several replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paddock.runtime.engine_loop import Listener
from paddock.runtime.handle import RequestHandle
from paddock.runtime.images.prepared import ImagePrompt
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.speech.sound_prompt import SoundPrompt
from paddock.runtime.stats import Stats


class Loop(Protocol):
    """`EngineLoop` and `Replicas`; what each call does is said at `EngineLoop`."""

    limits: Limits

    def submit(
        self,
        prompt: str | Sequence[int] | ImagePrompt | SoundPrompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        request_id: str | None = None,
        cache_salt: str = "",
    ) -> RequestHandle: ...

    def wait_for_room(self, departures: int, timeout_s: float | None = None) -> None: ...

    @property
    def departures(self) -> int: ...

    def add_listener(self, listener: Listener) -> None: ...

    def stats(self) -> Stats: ...

    @property
    def alive(self) -> bool: ...

    @property
    def stalled_s(self) -> float: ...

    @property
    def ailments(self) -> Sequence[str]:
        """What is out of order while it goes on: a line for each replica that has stopped."""

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None: ...
