"""Run tasks in threads, show how far they are, and stop them all at the first error."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from threading import Lock

from tqdm import tqdm

Progress = bool | Callable[[int, int], None]
"""Whether to draw a bar (on a terminal), or what to call with the bytes done and their total."""

_INTERVAL_S = 0.1


class Stopped(Exception):
    """Raised in a task when another one failed or the caller was interrupted."""


class Work:
    """What the tasks share: they report bytes, and learn that they are to stop."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.stopped = total, 0, False
        self._lock = Lock()

    def advance(self, count: int) -> None:
        """`count` more bytes are done. Raises `Stopped`."""
        with self._lock:
            self.done += count
        if self.stopped:
            raise Stopped


def run(
    tasks: Sequence[Callable[[Work], None]],
    *,
    total: int,
    threads: int,
    label: str,
    progress: Progress = False,
    done: int = 0,
) -> None:
    """Run all tasks; the first error stops the others and is raised.

    `progress` is called from this thread alone. `total` is what the tasks will report in all,
    with `done` of it done before they begin.
    """
    work = Work(total)
    work.done = done
    with _reporter(progress, label) as report, ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(task, work) for task in tasks]
        try:
            waiting: set[Future[None]] = set(futures)
            while waiting:
                finished, waiting = wait(waiting, _INTERVAL_S, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                report(work.done, total)
        finally:
            work.stopped = True
            pool.shutdown(wait=True, cancel_futures=True)


def available_cpus() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _reporter(progress: Progress, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
    if callable(progress):
        return nullcontext(progress)
    return _Bar(label) if progress else nullcontext(lambda done, total: None)


class _Bar:
    """A bar that goes away when it is done; nothing where nobody looks at a terminal."""

    def __init__(self, label: str) -> None:
        self._bar = tqdm(desc=label, unit="B", unit_scale=True, disable=None, leave=False)

    def __enter__(self) -> Callable[[int, int], None]:
        return self._update

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _update(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
