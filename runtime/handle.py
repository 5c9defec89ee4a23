"""A running request as its caller sees it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self

from paddock.runtime.errors import RequestFailed
from paddock.runtime.outputs import (
    Event,
    Increment,
    PromptLogprobs,
    RequestResult,
    SequenceResult,
    Timing,
)
from paddock.runtime.sampling.sampler import SampledToken
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.request import FinishReason, Request
from paddock.runtime.text.text_stream import TextStream

logger = logging.getLogger(__name__)

_MANY = 64
"""Events that come together where nobody waits for each: text is made of them in one go, which
should not hold an event loop up for long."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Who is told in an event loop that something has come; see `RequestHandle.subscribe`."""

    event_loop: asyncio.AbstractEventLoop
    tell: Callable[[], Callable[[], None] | None]
    """Called in the event loop by `tell_all`: it must not raise, and not take long. It may return
    what is to be called once all are told."""
    events: int = 1
    """How many events have to lie ready, unless one of them ends a sequence."""


def tell_all(tells: Sequence[Callable[[], Callable[[], None] | None]]) -> None:
    """Tell subscribers of one event loop, within it.

    What they have to do afterwards is done in a row: pieces that are written one right after the
    other wake the process that reads them once, and not each.
    """
    afterwards = []
    for tell in tells:
        try:
            then = tell()
        except Exception:
            logger.exception("a subscriber of a request failed")
        else:
            if then is not None:
                afterwards.append(then)
    for then in afterwards:
        try:
            then()
        except Exception:
            logger.exception("a subscriber of a request failed")


class RequestHandle:
    """Iterate it (`for` or `async for`) for increments as they come, or wait for `result()`.

    One consumer at a time; a slow one gets larger increments and holds nobody up: text is made
    here, in the consumer's thread, except where the loop itself has to look for stop strings.
    As a context manager it cancels what is unfinished on leaving.
    """

    def __init__(
        self,
        request: Request,
        cancel: Callable[[Request], None],
    ) -> None:
        self._request = request
        self._cancel = cancel
        self._sequences = [_Gathered(index, stream) for index, stream in enumerate(request.streams)]
        self._unfinished = len(request.streams)  # in the consumer's eyes
        self._prompt_logprobs: PromptLogprobs | None = None
        # Between the loop's thread and the consumer's.
        self._lock = threading.Lock()
        self._arrival = threading.Condition(self._lock)
        self._sleepers = 0
        self._events: deque[Event] = deque()
        self._subscriber: Subscriber | None = None

    @property
    def request_id(self) -> str:
        return self._request.request_id

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return tuple(self._request.asked_token_ids.tolist())

    @property
    def params(self) -> SamplingParams:
        return self._request.params

    @property
    def prompt_tokens_cached(self) -> int:
        """Tokens of the prompt that were found in the cache; 0 before it is first scheduled."""
        return self._request.prompt_tokens_cached

    @property
    def prompt_logprobs(self) -> PromptLogprobs | None:
        """Those of the prompt, once an increment brought them."""
        return self._prompt_logprobs

    @property
    def finished(self) -> bool:
        """Whether every increment was taken."""
        return self._unfinished == 0

    @property
    def done(self) -> bool:
        """Whether the loop has ended it, so that `result()` need not wait."""
        return self._request.finished

    def cancel(self) -> None:
        """End it within one step of the loop; sequences still running finish as `cancelled`."""
        self._cancel(self._request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._request.finished:
            self.cancel()

    # --- synchronous --------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Increment]:
        return self

    def __next__(self) -> Increment:
        increment = self.next()
        if increment is None:
            raise StopIteration
        return increment

    def next(self, timeout_s: float | None = None) -> Increment | None:
        """The next increment; None after the last. Raises `TimeoutError`, `RequestFailed`."""
        end = None if timeout_s is None else monotonic() + timeout_s
        with self._arrival:
            while not self._events and not self.finished:
                left = None if end is None else end - monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"{self.request_id}: no news in {timeout_s} s")
                self._sleepers += 1
                try:
                    self._arrival.wait(left)
                finally:
                    self._sleepers -= 1
            events = self._take()
        if events:
            return self._gather(events)
        self._raise_error()
        return None

    def result(self, timeout_s: float | None = None) -> RequestResult:
        """Wait for the end; takes the increments nobody took. Raises as `next` does."""
        end = None if timeout_s is None else monotonic() + timeout_s
        while self.next(None if end is None else max(end - monotonic(), 0.0)) is not None:
            pass
        return self._result()

    # --- asynchronous -------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Increment]:
        return self

    async def __anext__(self) -> Increment:
        while (increment := self.take_ready()) is None:
            if self.finished:
                raise StopAsyncIteration
            await self._news(1)
        return increment

    async def aresult(self) -> RequestResult:
        """`result()` for coroutines."""
        while True:
            while self.take_ready() is not None:
                pass
            if self.finished:
                return self._result()
            # Nobody looks at what comes meanwhile: the event loop is not woken at every step.
            await self._news(_MANY)

    async def _news(self, events: int) -> None:
        """Return when so many events are there, or the last of a sequence."""
        event_loop = asyncio.get_running_loop()
        told = event_loop.create_future()

        def tell() -> None:
            if not told.done():
                told.set_result(None)

        self.subscribe(Subscriber(event_loop, tell, events))
        try:
            await told
        finally:
            self.subscribe(None)

    def subscribe(self, subscriber: Subscriber | None) -> None:
        """From within its event loop: have `subscriber` told from now on, in place of the one
        before; soon, where something lies ready."""
        with self._lock:
            self._subscriber = subscriber
            if subscriber is None or not self._events:
                return
        subscriber.event_loop.call_soon(tell_all, (subscriber.tell,))

    def take_ready(self) -> Increment | None:
        """The next increment without waiting; None: nothing is there now, or nothing is left.

        Raises `RequestFailed` after the last one, where the request failed.
        """
        if self._events:
            with self._lock:
                events = self._take()
            if events:
                return self._gather(events)
        if self.finished:
            self._raise_error()
        return None

    # --- from the loop ------------------------------------------------------------------------

    def publish(self, events: Sequence[Event]) -> Subscriber | None:
        """For the loop alone: hand events over. Returns who is to be told, in its event loop."""
        with self._lock:
            self._events.extend(events)
            if self._sleepers:
                self._arrival.notify_all()
            subscriber = self._subscriber
            if subscriber is None:
                return None
            enough = len(self._events) >= subscriber.events
            return subscriber if enough or events[-1].finish_reason is not None else None

    # --- the consumer's side ------------------------------------------------------------------

    def _take(self) -> list[Event]:
        """The events of one sequence that lie ready in a row; several tokens in one increment."""
        taken: list[Event] = []
        events = self._events
        while events and (not taken or events[0].index == taken[0].index):
            taken.append(events.popleft())
        return taken

    def _gather(self, events: list[Event]) -> Increment:
        sequence = self._sequences[events[0].index]
        increment = sequence.add(events, logprobs=self._request.params.logprobs is not None)
        if increment.prompt_logprobs is not None:
            self._prompt_logprobs = increment.prompt_logprobs
        if increment.finish_reason is not None:
            self._unfinished -= 1
        return increment

    def _raise_error(self) -> None:
        error = self._request.error
        if error is not None:
            raise RequestFailed(f"{self.request_id} failed: {error}") from error

    def _result(self) -> RequestResult:
        request = self._request
        firsts = [sequence.token_times[0] for sequence in request.sequences if sequence.token_times]
        timing = Timing(
            arrival=request.arrival,
            first_scheduled=request.first_scheduled,
            first_token=min(firsts, default=None),
            finished=request.finished_at,
            token_times=tuple(tuple(sequence.token_times) for sequence in request.sequences),
        )
        return RequestResult(
            request_id=self.request_id,
            prompt_token_ids=self.prompt_token_ids,
            sequences=tuple(
                sequence.result(logprobs=request.params.logprobs is not None)
                for sequence in self._sequences
            ),
            prompt_logprobs=self._prompt_logprobs,
            timing=timing,
            prompt_tokens_cached=request.prompt_tokens_cached,
        )


class _Gathered:
    """What the consumer has of one sequence."""

    def __init__(self, index: int, stream: TextStream) -> None:
        self.index = index
        self._stream = stream
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[SampledToken] = []
        self._finish_reason: FinishReason | None = None
        self._stop_reason: int | str | None = None

    def add(self, events: list[Event], *, logprobs: bool) -> Increment:
        token_ids: list[int] = []
        texts: list[str] = []
        sampled: list[SampledToken] = []
        prompt_logprobs: PromptLogprobs | None = None
        for event in events:
            if event.token_id is not None:
                token_ids.append(event.token_id)
                if event.text is None and not event.hidden:
                    texts.append(self._stream.push(event.token_id))
            if event.text is not None:
                texts.append(event.text)
            if event.sampled is not None:
                sampled.append(event.sampled)
            if event.prompt_logprobs is not None:
                prompt_logprobs = event.prompt_logprobs
            if event.finish_reason is not None:
                self._finish_reason, self._stop_reason = event.finish_reason, event.stop_reason
                if event.text is None:
                    texts.append(self._stream.finish())
        text = "".join(texts)
        self._token_ids += token_ids
        self._texts.append(text)
        self._logprobs += sampled
        return Increment(
            index=self.index,
            token_ids=tuple(token_ids),
            text=text,
            logprobs=tuple(sampled) if logprobs else None,
            finish_reason=self._finish_reason,
            stop_reason=self._stop_reason,
            prompt_logprobs=prompt_logprobs,
        )

    def result(self, *, logprobs: bool) -> SequenceResult:
        assert self._finish_reason is not None
        return SequenceResult(
            index=self.index,
            token_ids=tuple(self._token_ids),
            text="".join(self._texts),
            logprobs=tuple(self._logprobs) if logprobs else None,
            finish_reason=self._finish_reason,
            stop_reason=self._stop_reason,
        )
