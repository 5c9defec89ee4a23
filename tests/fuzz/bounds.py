"""How long fuzzing goes on, and what a single example may take."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hypothesis import HealthCheck, settings

_ASKED = os.environ.get("PADDOCK_FUZZ_EXAMPLES")
SECONDS = 10.0
"""No example takes a tenth of it on an idle machine, so more is a hang."""
MEMORY = 1 << 30
"""Bytes of address space that an example may add: its inputs are some kilobytes."""


def fuzz(examples: int) -> settings:
    """So many examples, the same in every run; with PADDOCK_FUZZ_EXAMPLES so many, and others."""
    return settings(
        max_examples=int(_ASKED) if _ASKED else examples,
        derandomize=_ASKED is None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Hung(AssertionError):
    """It is no `Exception` that the code in question would expect."""


@contextmanager
def bounded() -> Iterator[None]:
    """Raise `Hung` after `SECONDS`, and `MemoryError` beyond `MEMORY`; for the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hung(f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
