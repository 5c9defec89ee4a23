"""The one thread that owns a session, and the way in for everybody else."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from paddock.engines.protocol import Session, SessionLost
from paddock.models.images import ImageForm
from paddock.runtime.errors import LoopClosed
from paddock.runtime.handle import RequestHandle, tell_all
from paddock.runtime.images.prepared import ImagePrompt
from paddock.runtime.intake import Intake, TextCodec
from paddock.runtime.outputs import Event
from paddock.runtime.sampling.constraint import Grammars
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.admission import Admission
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.prefix_hash import PrefixHasher
from paddock.runtime.scheduling.request import FinishReason, Request, State
from paddock.runtime.scheduling.scheduler import Scheduler
from paddock.runtime.speech.sound_prompt import SoundPrompt
from paddock.runtime.stats import Stats, StepReport, TokenRate
from paddock.runtime.steps.ahead_stepper import AheadStepper
from paddock.runtime.steps.pipelined_stepper import PipelinedStepper
from paddock.runtime.steps.stepper import Stepper

logger = logging.getLogger(__name__)

CLOSED = "the engine loop is closed and takes no more requests"

News = TypeVar("News")


class Listener(Protocol):
    """Is told what happens, in the loop's thread: keep it short. An error in it is logged."""

    def on_step(self, report: StepReport) -> None: ...

    def on_finish(self, request: Request) -> None: ...


class EngineLoop:
    """Takes requests from any thread or event loop and runs them together.

        with EngineLoop(session, limits, tokenizer=tokenizer) as loop:
            for increment in loop.submit("Once upon a time", SamplingParams(max_tokens=20)):
                print(increment.text, end="")

    Only the loop's own thread touches the session. An error in the engine ends the requests that
    were in that step; the loop goes on.
    """

    def __init__(
        self,
        session: Session,
        limits: Limits,
        *,
        tokenizer: TextCodec | None = None,
        grammars: Grammars | None = None,
        answer_begins: Sequence[int] = (),
        heard: tuple[int, int] | None = None,
        image_form: ImageForm | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allocates the cache; what `session.allocate_cache` raises is raised here.

        Without a tokenizer prompts are token ids, and there is no text; without `grammars` there
        are no structured outputs. `answer_begins`: the tokens with which every answer of an
        encoder-decoder begins; prompts are then what its encoder reads, or, with `heard`, features
        of this shape (`paddock.runtime.audio.log_mel`). `image_form`: what images are to a model
        that sees; a prompt may be an `ImagePrompt` then.
        """
        self.limits = limits
        self._session = session
        self._clock = clock
        hasher = PrefixHasher(session.block_size)
        self._intake = Intake(
            session, limits, tokenizer, hasher, clock, grammars, answer_begins, heard, image_form
        )
        self._admission = Admission(limits, clock)
        kind = Stepper
        if hasattr(session, "choose"):
            kind = AheadStepper
        elif getattr(session, "steps_in_flight", 1) > 1:
            kind = PipelinedStepper
        self._stepper = kind(
            session,
            limits,
            Scheduler(
                limits,
                session.block_size,
                hasher,
                reuse=not session.state_bytes and not answer_begins,
            ),
            self._admission,
            eos_token_ids=self._intake.eos_token_ids,
            clock=clock,
            image_form=image_form,
        )
        self._rate = TokenRate()
        self._listeners: list[Listener] = []
        self._live: dict[int, tuple[Request, RequestHandle]] = {}

        # Between threads: the bell that wakes the loop, and commands for it: a new request with
        # its handle, or a request to be cancelled.
        self._bell = threading.Condition(threading.Lock())
        self._commands: deque[tuple[Request, RequestHandle | None]] = deque()
        self._closing = False
        self.failure: BaseException | None = None
        """Why it has stopped, where nobody closed it."""
        self._lost: SessionLost | None = None  # with nothing to do, too, a lost session ends it
        self._give_up = False
        self._over = False
        self._ended = threading.Event()
        self._last_progress = clock()

        started = threading.Event()
        failure: list[BaseException] = []
        self._thread = threading.Thread(
            target=self._main, args=(started, failure), name="paddock-engine-loop", daemon=True
        )
        self._thread.start()
        started.wait()
        if failure:
            raise failure[0]
        # A daemon thread inside native code does not survive the interpreter's end, so the loop
        # is closed before that where nobody did; an exit does not wait for long generations.
        atexit.register(self._close_at_exit)

    # --- for any thread -----------------------------------------------------------------------

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
        """Queue a request; returns at once.

        `priority`: smaller is more urgent, within -100..100. `deadline_s`: seconds from now after
        which it ends as it is. Requests share cached prefixes where `cache_salt` is equal.
        Raises `RequestTooLarge` where it could never run, `QueueFull` where too much is waiting,
        `LoopClosed`, and `RequestError` for what is wrong in it.
        """
        request = self._intake.request(
            prompt,
            params or SamplingParams(),
            priority=priority,
            deadline_s=deadline_s,
            request_id=request_id,
            cache_salt=cache_salt,
        )
        handle = RequestHandle(request, self._cancel)
        self._admission.enter(request)
        with self._bell:
            if self._over:
                raise LoopClosed(CLOSED)
            self._commands.append((request, handle))
            self._bell.notify()
        return handle

    def wait_for_room(self, departures: int, timeout_s: float | None = None) -> None:
        """After `QueueFull`: return when a request has left the queue since `departures` did."""
        self._admission.wait_for_departure(departures, timeout_s)

    @property
    def departures(self) -> int:
        """How many requests have left the queue so far; see `wait_for_room`."""
        return self._admission.departures

    def add_listener(self, listener: Listener) -> None:
        """Tell `listener` of every step and every finished request from now on."""
        self._listeners = [*self._listeners, listener]

    def stats(self) -> Stats:
        """How things stand now."""
        scheduler, stepper = self._stepper.scheduler, self._stepper
        return Stats(
            running=len(scheduler.running),
            waiting=scheduler.queued + len(self._commands),
            queued_requests=self._admission.requests,
            queued_tokens=self._admission.tokens,
            blocks=scheduler.pool.size,
            blocks_held=scheduler.pool.held,
            steps=stepper.steps,
            failed_steps=stepper.failed_steps,
            preemptions=scheduler.counters.preemptions,
            prompt_tokens=scheduler.counters.prompt_tokens_admitted,
            prompt_tokens_hit=scheduler.counters.prompt_tokens_hit,
            generated_tokens=stepper.generated_tokens,
            requests_finished=stepper.requests_finished,
            tokens_per_s=self._rate.per_second(self._clock()),
            last_progress=self._last_progress,
        )

    @property
    def alive(self) -> bool:
        """Whether the loop's thread is there to take requests."""
        return self._thread.is_alive() and not self._closing

    @property
    def stalled_s(self) -> float:
        """Seconds since the loop last ended a step, where it has something to do; else 0."""
        if not self._stepper.idle:
            return max(self._clock() - self._last_progress, 0.0)
        try:
            return max(self._clock() - self._commands[0][0].arrival, 0.0)
        except IndexError:
            return 0.0

    @property
    def ailments(self) -> Sequence[str]:
        """None: one loop goes on, or it does not (see `Replicas`)."""
        return ()

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take no more requests; finish those there are, or cancel them, and close the session.

        `drain` false cancels at once; otherwise what is unfinished after `timeout_s` is
        cancelled. A second call may hurry a first one.
        """
        self._admission.close(CLOSED)
        self._closing = True
        if not drain:
            self._give_up = True
        self._ring()
        if threading.current_thread() is self._thread:
            return
        try:
            ended = self._ended.wait(timeout_s)
        except BaseException:
            self._give_up = True  # Ctrl-C while draining: the rest is not waited for
            self._ring()
            raise
        if not ended:
            self._give_up = True
            self._ring()
            self._ended.wait()
        self._thread.join()
        atexit.unregister(self._close_at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    # --- the loop's thread ------------------------------------------------------------------

    def _main(self, started: threading.Event, failure: list[BaseException]) -> None:
        try:
            self._session.allocate_cache(self.limits.cache_blocks, self.limits.max_sequences)
        except BaseException as error:
            failure.append(error)
            return
        finally:
            started.set()
        watch = getattr(self._session, "watch", None)
        if watch is not None:
            watch(self._session_lost)
        try:
            self._serve()
        except SessionLost as error:
            if logger.hasHandlers():  # whoever waits is told in any case
                logger.error("the engine loop has stopped: %s", error)
            self._end(error)
        except BaseException as error:
            logger.exception("the engine loop has stopped")
            self._end(error)
        else:
            self._end(None)

    def _serve(self) -> None:
        stepper = self._stepper
        while True:
            self._take_commands()
            if stepper.idle:
                self._publish(stepper.take_events())
                if not self._wait_for_commands():
                    return
                continue
            report = stepper.step()
            now = self._last_progress = self._clock()
            events = stepper.take_events()
            self._publish(events)
            if report is not None:
                self._rate.add(now, sum(map(len, events.values())))
                for listener in self._listeners:
                    _guarded(listener.on_step, report)

    def _take_commands(self) -> None:
        while self._commands:
            request, handle = self._commands.popleft()
            if handle is None:
                self._stepper.end(request, FinishReason.CANCELLED)
                continue
            if self._stepper.idle:
                self._last_progress = self._clock()
            self._live[request.number] = request, handle
            self._stepper.add(request)
        if self._give_up:
            for request, _ in self._live.values():
                self._stepper.end(request, FinishReason.CANCELLED)

    def _wait_for_commands(self) -> bool:
        """Sleep until there is something to do; false: until the loop is to end."""
        with self._bell:
            while not self._commands:
                if self._lost is not None:
                    raise self._lost
                if self._closing:
                    self._over = True
                    return False
                self._bell.wait()
        return True

    def _publish(self, events: dict[int, list[Event]]) -> None:
        told: dict[asyncio.AbstractEventLoop, list[Callable[[], Callable[[], None] | None]]] = {}
        finished: list[Request] = []
        for number, news in events.items():
            request, handle = self._live[number]
            if request.finished:
                del self._live[number]
                finished.append(request)
            subscriber = handle.publish(news)
            if subscriber is not None:
                told.setdefault(subscriber.event_loop, []).append(subscriber.tell)
        for event_loop, tells in told.items():
            try:
                event_loop.call_soon_threadsafe(tell_all, tells)  # waking it costs: once a step
            except RuntimeError:  # the event loop is closed, and with it whoever waited
                logger.debug("%d requests were waited for in a closed event loop", len(tells))
        for listener in self._listeners:
            for request in finished:
                _guarded(listener.on_finish, request)

    def _end(self, error: BaseException | None) -> None:
        """Nothing more is run: nobody is left waiting, and the session is closed."""
        self.failure = error
        self._closing = True
        self._admission.close(f"the engine loop has stopped: {error}" if error else CLOSED)
        with self._bell:
            self._over = True
        while self._commands:
            request, handle = self._commands.popleft()
            if handle is not None:
                self._live[request.number] = request, handle
        events = self._stepper.take_events()
        for number, (request, _) in self._live.items():
            request.error = request.error or error
            request.finished_at = self._clock()
            for sequence in request.sequences:
                if sequence.state is not State.FINISHED:
                    sequence.state = State.FINISHED
                    request.unfinished -= 1
                    reason = FinishReason.ERROR if error else FinishReason.CANCELLED
                    last = Event(sequence.index, text="", finish_reason=reason)
                    events.setdefault(number, []).append(last)
        try:
            self._publish(events)
            self._session.close()
        except Exception:
            logger.exception("the engine loop could not close its session")
        finally:
            self._ended.set()

    # --- small things ---------------------------------------------------------------------------

    def _cancel(self, request: Request) -> None:
        self._commands.append((request, None))
        self._ring()

    def _session_lost(self, error: SessionLost) -> None:
        self._lost = error
        self._ring()

    def _ring(self) -> None:
        with self._bell:
            self._bell.notify()

    def _close_at_exit(self) -> None:
        self.close(drain=False)


def _guarded(tell: Callable[[News], None], news: News) -> None:
    try:
        tell(news)
    except Exception:
        logger.exception("a listener of the engine loop failed")
