"""Gather memory that was taken while a model was opened into pages of 2 MiB, where Linux has them.

Decoding reads every weight once a token. In pages of 4 KiB a processor translates an address for
each of them; measured, the repacked weights of a 0.5B model are read some per cent faster in large
pages. What that is worth on which processor: docs/decisions/0081-huge-pages.md.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

PAGE, HUGE = 4096, 2 << 20
_MAPS = Path("/proc/self/maps")
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # the second since Linux 6.1; Python has no name for it
_RESIDENT = HUGE // PAGE * 9 // 10  # of a large page's small ones; the others would be made

Range = tuple[int, int]


def anonymous_memory() -> list[Range]:
    """Private writable memory of this process that no file lies under; [] where nobody says."""
    try:
        lines = _MAPS.read_text("ascii", "replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.split(maxsplit=5)
        if fields[1] == "rw-p" and (len(fields) < 6 or fields[5] == "[heap]"):
            first, _, last = fields[0].partition("-")
            found.append((int(first, 16), int(last, 16)))
    return found


def taken_since(before: Sequence[Range]) -> list[Range]:
    """What of today's `anonymous_memory` was not there before."""
    return without(anonymous_memory(), before)


def without(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """What of `ranges` is in none of `others`; both ascend and overlap nowhere among themselves.

    One pass over both: a process can have thousands of mappings.
    """
    left, at = [], 0
    for start, end in ranges:
        while at < len(others) and others[at][1] <= start:
            at += 1
        reached = at
        while reached < len(others) and others[reached][0] < end:
            first, last = others[reached]
            if start < first:
                left.append((start, first))
            start = max(start, last)
            reached += 1
        if start < end:
            left.append((start, end))
    return left


class HugePages:
    """Gathers in a thread of its own, a few milliseconds for each 2 MiB; `stop` ends it early."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._ranges = [r for r in ranges if r[1] - r[0] >= HUGE]
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.gathered = 0  # large pages

    def start(self) -> None:
        if self._ranges and _allowed():
            self._thread = threading.Thread(
                target=self._gather, name="paddock-huge-pages", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Before the memory is given back."""
        self._stopped.set()
        self.wait()

    def wait(self) -> None:
        """Until all is gathered."""
        if self._thread is not None:
            self._thread.join()

    def _gather(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        small = (ctypes.c_ubyte * (HUGE // PAGE))()
        for page in _large_pages(self._ranges):
            if self._stopped.is_set():
                return
            # An error means that the memory is gone or that no 2 MiB are free: it stays as it is.
            if libc.mincore(page, HUGE, small) or sum(flag & 1 for flag in small) < _RESIDENT:
                continue
            if libc.madvise(page, HUGE, _MADV_HUGEPAGE) == 0:
                self.gathered += libc.madvise(page, HUGE, _MADV_COLLAPSE) == 0


def _allowed() -> bool:
    """Whether the administrator lets programs have large pages."""
    try:
        return "[never]" not in _POLICY.read_text("ascii")
    except OSError:
        return False


def _large_pages(ranges: Sequence[Range]) -> Iterator[int]:
    for first, last in ranges:
        yield from range(-(-first // HUGE) * HUGE, last // HUGE * HUGE, HUGE)
