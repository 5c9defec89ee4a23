"""Several engine loops over the same model behind one way in."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from paddock.runtime.engine_loop import CLOSED, EngineLoop, Listener
from paddock.runtime.errors import LoopClosed, QueueFull
from paddock.runtime.handle import RequestHandle
from paddock.runtime.images.prepared import ImagePrompt, PlacedImage
from paddock.runtime.intake import TextCodec
from paddock.runtime.routing import Router
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.prefix_hash import PrefixHasher
from paddock.runtime.scheduling.request import Request
from paddock.runtime.speech.sound_prompt import SoundPrompt
from paddock.runtime.stats import Stats, StepReport

LOOK_S = 0.5
"""How often somebody who waits for room looks whether there is any, whatever he was told."""


class Replicas:
    """Takes what an `EngineLoop` takes, and gives each request to one of several (see `Router`).

    A replica whose engine is lost ends its own requests with that error; the others go on, and
    requests go to them. When none is left, this has stopped, as an engine loop does.
    """

    def __init__(
        self,
        loops: Sequence[EngineLoop],
        block_size: int,
        *,
        tokenizer: TextCodec | None = None,
        reuse: bool = True,
    ) -> None:
        """`loops` have equal limits, and belong to this from now on.

        `reuse`: whether they find prefixes in their caches, so that it matters who takes what.
        """
        self._loops = list(loops)
        self._tokenizer = tokenizer
        self._reuse = reuse
        self._hasher = PrefixHasher(block_size)
        one, count = loops[0].limits, len(loops)
        self.limits: Limits = replace(
            one,
            max_sequences=one.max_sequences * count,
            max_tokens_per_step=one.max_tokens_per_step * count,
            cache_blocks=one.cache_blocks * count,
            max_queued_requests=one.max_queued_requests * count,
            max_queued_tokens=one.max_queued_tokens * count,
        )
        self._router = Router(count, self.limits.cache_blocks)
        self._changed = threading.Condition()  # guards the router
        self._closing = False
        for number, loop in enumerate(self._loops):
            loop.add_listener(_Watch(self._router, self._changed, number))

    def submit(
        self,
        prompt: str | Sequence[int] | ImagePrompt | SoundPrompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        request_id: str | None = None,
        cache_salt: str = "",
    ) -> RequestHandle:
        """As `EngineLoop.submit`; `QueueFull` where every replica's queue is."""
        params = params or SamplingParams()
        if isinstance(prompt, str) and self._tokenizer is not None:
            prompt = self._tokenizer.encode(prompt)
        digests = self._digests(prompt, cache_salt) if self._reuse else []
        full: list[QueueFull] = []
        left = [number for number, loop in enumerate(self._loops) if loop.alive]
        while left:
            with self._changed:
                chosen = self._router.choose(digests, params.n, left)
                self._router.give(chosen, params.n)
            try:
                handle = self._loops[chosen].submit(
                    prompt,
                    params,
                    priority=priority,
                    deadline_s=deadline_s,
                    request_id=request_id,
                    cache_salt=cache_salt,
                )
            except QueueFull as error:
                self._take_back(chosen, params.n)
                full.append(error)
            except LoopClosed:  # it was alive a moment ago
                self._take_back(chosen, params.n)
            except BaseException:
                self._take_back(chosen, params.n)
                raise
            else:
                with self._changed:
                    self._router.learn(chosen, digests)
                return handle
            left.remove(chosen)
        if full:
            raise min(full, key=lambda error: error.retry_after_s)
        raise LoopClosed(CLOSED if self._closing else f"no replica is left: {self._why()}")

    def wait_for_room(self, departures: int, timeout_s: float | None = None) -> None:
        """As `EngineLoop.wait_for_room`."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self.departures <= departures and self.alive:
                left = LOOK_S if end is None else min(end - time.monotonic(), LOOK_S)
                if left <= 0:
                    return
                self._changed.wait(left)

    @property
    def departures(self) -> int:
        return sum(loop.departures for loop in self._loops)

    def add_listener(self, listener: Listener) -> None:
        """It is told of all replicas, by one at a time."""
        alone = _OneAtATime(listener)
        for loop in self._loops:
            loop.add_listener(alone)

    def stats(self) -> Stats:
        """Of all replicas together."""
        return Stats.sum([loop.stats() for loop in self._loops])

    def stats_of_each(self) -> list[Stats]:
        return [loop.stats() for loop in self._loops]

    @property
    def alive(self) -> bool:
        """Whether one replica is there to take requests."""
        return any(loop.alive for loop in self._loops)

    @property
    def stalled_s(self) -> float:
        """Of the replica that has stood still for longest."""
        return max((loop.stalled_s for loop in self._loops if loop.alive), default=0.0)

    @property
    def ailments(self) -> list[str]:
        """A line for each replica that has stopped, with the reason."""
        if self._closing:
            return []
        return [
            f"replica {number} of {len(self._loops)} has stopped: {loop.failure or 'it was closed'}"
            for number, loop in enumerate(self._loops)
            if not loop.alive
        ]

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """As `EngineLoop.close`, all at once."""
        self._closing = True
        failures: list[BaseException] = []

        def close_one(loop: EngineLoop) -> None:
            try:
                loop.close(drain=drain, timeout_s=timeout_s)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=close_one, args=(loop,)) for loop in self._loops[1:]]
        for thread in threads:
            thread.start()
        try:
            self._loops[0].close(drain=drain, timeout_s=timeout_s)
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C while draining: the rest is not waited for
            for loop in self._loops:
                loop.close(drain=False)
            raise
        if failures:
            raise failures[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    def _digests(
        self, prompt: str | Sequence[int] | ImagePrompt | SoundPrompt, cache_salt: str
    ) -> list[bytes]:
        """Of the prompt's full blocks; none of a prompt that the intake will refuse."""
        images: Sequence[PlacedImage] = ()
        if isinstance(prompt, ImagePrompt):
            images, prompt = prompt.images, prompt.token_ids
        if isinstance(prompt, SoundPrompt):
            return []
        try:
            token_ids = np.array(prompt, np.int64)
        except (ValueError, OverflowError):
            return []
        if token_ids.ndim != 1:
            return []
        root = self._hasher.root(cache_salt.encode("utf-8", "surrogatepass"))
        return self._hasher.blocks(root, token_ids, images)

    def _take_back(self, replica: int, sequences: int) -> None:
        with self._changed:
            self._router.end(replica, sequences)

    def _why(self) -> str:
        return "; ".join(str(loop.failure) for loop in self._loops if loop.failure is not None)


class _Watch:
    """Tells the router what has ended in one replica, and whoever waits that there may be room."""

    def __init__(self, router: Router, changed: threading.Condition, replica: int) -> None:
        self._router, self._changed, self._replica = router, changed, replica

    def on_step(self, report: StepReport) -> None:
        with self._changed:
            self._changed.notify_all()

    def on_finish(self, request: Request) -> None:
        with self._changed:
            self._router.end(self._replica, len(request.sequences))
            self._changed.notify_all()


class _OneAtATime:
    """A listener that need not know that there are several threads."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._lock = threading.Lock()

    def on_step(self, report: StepReport) -> None:
        with self._lock:
            self._listener.on_step(report)

    def on_finish(self, request: Request) -> None:
        with self._lock:
            self._listener.on_finish(request)
