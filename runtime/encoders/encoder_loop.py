"""The one thread that owns an encoder's session: whole sequences in, rows of hidden states out."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np

from paddock.engines.protocol import Session, StepInputs
from paddock.graph.dtype import Array
from paddock.runtime.encoders.pooling import Reads
from paddock.runtime.errors import (
    LimitsError,
    LoopClosed,
    QueueFull,
    RequestError,
    RequestFailed,
    RequestTooLarge,
)

logger = logging.getLogger(__name__)

CLOSED = "the encoder loop is closed and takes no more sequences"
CANDIDATES = 1024
"""Waiting sequences among which a step looks for some of like length."""


@dataclass(frozen=True, kw_only=True)
class EncoderLimits:
    """Bounds of the loop, in tokens or counts."""

    max_context: int
    """Tokens of the longest sequence."""
    max_tokens_per_step: int
    """What a step computes, padding included; a longer sequence has a step of its own."""
    max_sequences: int
    max_queued_sequences: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise LimitsError(f"limits.{field.name} must be positive, it is {value}")


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """How things stand, and totals since the start."""

    waiting: int
    steps: int
    failed_steps: int
    sequences: int
    tokens: int
    padded_tokens: int
    """What steps were as wide as their longest sequence: tokens, and places without one."""
    busy_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    token_ids: Array  # i64 [tokens]
    token_types: Array  # i64 [tokens]
    reads: Reads
    future: Future[Array]

    def __len__(self) -> int:
        return len(self.token_ids)


class EncoderLoop:
    """Takes sequences from any thread and runs those of like length together.

        future = loop.submit([101, 7592, 102])
        hidden = future.result()  # f32 [tokens, hidden]

    The one that has waited longest is in every step, so none waits for ever. An error in the
    engine ends the sequences of that step; the loop goes on.
    """

    def __init__(
        self,
        session: Session,
        limits: EncoderLimits,
        *,
        vocab_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._session, self._vocab_size, self._clock = session, vocab_size, clock
        self._bell = threading.Condition(threading.Lock())
        self._queue: deque[_Waiting] = deque()
        self._closing = self._give_up = False
        self._departures = 0
        self._rate_s = 0.01  # seconds a sequence, of late
        self._steps = self._failed = self._sequences = self._tokens = self._padded = 0
        self._busy_s = 0.0
        self._began: float | None = None
        # Causal models keep what they compute of a sequence in blocks, for the step alone.
        blocks = self._blocks(limits.max_context, 1)
        session.allocate_cache(
            max(blocks, self._blocks(limits.max_tokens_per_step, limits.max_sequences)),
            limits.max_sequences,
        )
        self._thread = threading.Thread(target=self._main, name="paddock-encoder-loop", daemon=True)
        self._thread.start()
        atexit.register(self._close_at_exit)

    # --- for any thread -----------------------------------------------------------------------

    def submit(
        self,
        token_ids: Sequence[int],
        token_types: Sequence[int] | None = None,
        *,
        reads: Reads = "all",
    ) -> Future[Array]:
        """Queue a whole sequence; the future gives f32 [rows, size] of the tokens it `reads`.

        Cancelling the future takes the sequence out while it waits. Raises `RequestTooLarge`,
        `RequestError` for ids outside the vocabulary, `QueueFull`, `LoopClosed`.
        """
        ids = np.array(token_ids, np.int64)
        if not 0 < len(ids) <= self.limits.max_context:
            raise RequestTooLarge(
                f"a sequence of {len(ids)} tokens: expected 1 to {self.limits.max_context}"
            )
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            outside = ids[(ids < 0) | (ids >= self._vocab_size)][0]
            raise RequestError(
                f"token id {outside} is outside the vocabulary of {self._vocab_size} tokens"
            )
        types = np.zeros_like(ids) if token_types is None else np.array(token_types, np.int64)
        waiting = _Waiting(ids, types, reads, Future())
        with self._bell:
            if self._closing:
                raise LoopClosed(CLOSED)
            if len(self._queue) >= self.limits.max_queued_sequences:
                raise QueueFull(
                    f"{len(self._queue)} sequences are waiting, which is as many as may; try again"
                    " later",
                    retry_after_s=self._rate_s * len(self._queue),
                )
            self._queue.append(waiting)
            self._bell.notify_all()
        return waiting.future

    @property
    def departures(self) -> int:
        """How many sequences have left the queue so far; see `wait_for_room`."""
        return self._departures

    def wait_for_room(self, departures: int, timeout_s: float | None = None) -> None:
        """After `QueueFull`: return when a sequence has left the queue since `departures` did."""
        with self._bell:
            self._bell.wait_for(lambda: self._departures > departures or self._closing, timeout_s)

    def stats(self) -> EncoderStats:
        return EncoderStats(
            len(self._queue),
            self._steps,
            self._failed,
            self._sequences,
            self._tokens,
            self._padded,
            self._busy_s,
        )

    @property
    def alive(self) -> bool:
        """Whether the loop's thread is there to take sequences."""
        return self._thread.is_alive() and not self._closing

    @property
    def ailments(self) -> Sequence[str]:
        """None: one loop goes on, or it does not."""
        return ()

    @property
    def stalled_s(self) -> float:
        """Seconds since the step that runs now began; 0 between steps."""
        began = self._began
        return 0.0 if began is None else max(self._clock() - began, 0.0)

    def close(self, *, drain: bool = True) -> None:
        """Take no more; finish what waits, or cancel it, and close the session."""
        with self._bell:
            self._closing = True
            self._give_up = self._give_up or not drain
            self._bell.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            atexit.unregister(self._close_at_exit)

    # --- the loop's thread ------------------------------------------------------------------

    def _main(self) -> None:
        while True:
            with self._bell:
                self._bell.wait_for(lambda: self._queue or self._closing)
                if self._closing and (self._give_up or not self._queue):
                    break
                batch = self._next_batch()
                self._departures += len(batch)
                self._bell.notify_all()
            batch = [w for w in batch if w.future.set_running_or_notify_cancel()]
            if batch:
                self._run(batch)
        for waiting in self._queue:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(LoopClosed(CLOSED))
        self._queue.clear()
        try:
            self._session.close()
        except Exception:
            logger.exception("the encoder loop could not close its session")

    def _next_batch(self) -> list[_Waiting]:
        """The oldest, and others of about its length: a step is as wide as its longest."""
        oldest = self._queue[0]
        others = sorted(islice(self._queue, 1, CANDIDATES), key=lambda w: abs(len(w) - len(oldest)))
        batch, longest = [oldest], len(oldest)
        for waiting in others:
            longest = max(longest, len(waiting))
            size = len(batch) + 1
            if size > self.limits.max_sequences:
                break
            if longest * size > self.limits.max_tokens_per_step:
                break
            batch.append(waiting)
        taken = set(map(id, batch))
        self._queue = deque(w for w in self._queue if id(w) not in taken)
        return batch

    def _run(self, batch: list[_Waiting]) -> None:
        self._began = began = self._clock()
        rows = [_rows(w) for w in batch]
        try:
            found = self._session.run(self._step(batch, rows))
            outputs = np.array(found, np.float32)  # the session's own buffer is reused
            if not np.isfinite(outputs).all():
                raise RequestFailed("the engine gives NaN or infinite values")
        except Exception as error:
            logger.exception("a step of %d sequences failed", len(batch))
            self._failed += 1
            failure = RequestFailed(f"the engine failed on a step of {len(batch)}: {error}")
            failure.__cause__ = error
            for waiting in batch:
                waiting.future.set_exception(failure)
            return
        finally:
            self._began = None
            took = self._clock() - began
            self._busy_s += took
            self._rate_s += (took / len(batch) - self._rate_s) / 8
        self._steps += 1
        self._sequences += len(batch)
        self._tokens += sum(map(len, batch))
        self._padded += len(batch) * max(map(len, batch))
        for waiting, rows_of_it in zip(
            batch, np.split(outputs, np.cumsum([len(r) for r in rows])[:-1]), strict=True
        ):
            waiting.future.set_result(rows_of_it)

    def _step(self, batch: list[_Waiting], rows: list[Array]) -> StepInputs:
        lengths = [len(w) for w in batch]
        starts = np.cumsum([0, *lengths])
        blocks = [self._blocks(length, 1) for length in lengths]
        return StepInputs(
            token_ids=np.concatenate([w.token_ids for w in batch]),
            positions=np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]),
            sequence_starts=starts.astype(np.int32),
            past_lengths=np.zeros(len(batch), np.int32),
            block_table=np.arange(sum(blocks), dtype=np.int32),
            block_starts=np.cumsum([0, *blocks]).astype(np.int32),
            sequence_slots=np.arange(len(batch), dtype=np.int32),
            logit_rows=np.concatenate(
                [start + r for start, r in zip(starts, rows, strict=False)]
            ).astype(np.int64),
            token_types=np.concatenate([w.token_types for w in batch]),
        )

    def _blocks(self, tokens: int, sequences: int) -> int:
        """Enough for so many tokens of so many sequences, each of which begins a block."""
        return -(-tokens // self._session.block_size) + sequences - 1

    def _close_at_exit(self) -> None:
        self.close(drain=False)


def _rows(waiting: _Waiting) -> Array:
    """Numbers of the tokens that are read, within their sequence."""
    match waiting.reads:
        case "first":
            return np.zeros(1, np.int64)
        case "last":
            return np.full(1, len(waiting) - 1, np.int64)
        case _:
            return np.arange(len(waiting), dtype=np.int64)
