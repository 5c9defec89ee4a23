"""What the loop says about itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields

WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: what it held, and where its time went (seconds)."""

    number: int
    started: float
    sequences: int
    tokens: int
    sampled: int
    plan_s: float
    run_s: float
    """In the engine."""
    sample_s: float
    commit_s: float
    failed: bool = False

    @property
    def overhead_s(self) -> float:
        """All but the engine's part."""
        return self.plan_s + self.sample_s + self.commit_s


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot; totals count from the loop's start."""

    running: int
    """Sequences in the batch."""
    waiting: int
    """Sequences in the queue, preempted ones included."""
    queued_requests: int
    """Requests that were never scheduled; these count against the queue's bounds."""
    queued_tokens: int
    blocks: int
    blocks_held: int
    steps: int
    failed_steps: int
    preemptions: int
    prompt_tokens: int
    """Tokens of admitted sequences (again after a preemption), found in the cache or computed."""
    prompt_tokens_hit: int
    """Those of them that were found in the cache."""
    generated_tokens: int
    requests_finished: int
    tokens_per_s: float
    """Generated, over the last seconds."""
    last_progress: float
    """When the loop last ended a step or had nothing to do (its monotonic clock)."""

    @staticmethod
    def sum(each: Sequence[Stats]) -> Stats:
        """Of several loops together; their last progress is the latest."""
        total = {f.name: sum(getattr(one, f.name) for one in each) for f in fields(Stats)}
        return Stats(**{**total, "last_progress": max(one.last_progress for one in each)})

    @property
    def cache_use(self) -> float:
        """The fraction of cache blocks that running sequences hold."""
        return self.blocks_held / self.blocks

    @property
    def prefix_hit_rate(self) -> float:
        """The fraction of prompt tokens that were found in the cache."""
        return self.prompt_tokens_hit / self.prompt_tokens if self.prompt_tokens else 0.0


class TokenRate:
    """Tokens a second over the last few seconds. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: deque[tuple[float, int]] = deque()
        self._tokens = 0

    def add(self, now: float, tokens: int) -> None:
        """`tokens` came at `now`. Steps within a tenth of a second are kept as one."""
        with self._lock:
            if self._counts and now - self._counts[-1][0] < 0.1:
                began, before = self._counts[-1]
                self._counts[-1] = (began, before + tokens)
            else:
                self._counts.append((now, tokens))
            self._tokens += tokens
            self._forget(now)

    def per_second(self, now: float) -> float:
        """The mean over the window, or since the first token in it."""
        with self._lock:
            self._forget(now)
            if not self._counts:
                return 0.0
            return self._tokens / max(now - self._counts[0][0], 0.1)

    def _forget(self, now: float) -> None:
        while self._counts and now - self._counts[0][0] > WINDOW_S:
            self._tokens -= self._counts.popleft()[1]
