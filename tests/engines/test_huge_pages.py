"""Memory is gathered into large pages where it is whole, and holds what it held."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.engines.openvino import huge_pages
from paddock.engines.openvino.huge_pages import (
    HUGE,
    HugePages,
    anonymous_memory,
    taken_since,
    without,
)

SIZE = 4 * HUGE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


def policy() -> str:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.read_text() if path.exists() else "[never]"


def address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def large_bytes(memory: mmap.mmap) -> int:
    """Of the mapping, what lies in large pages now."""
    inside, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in (span := line.split()[0]) and not span.endswith(":"):
            first, _, last = span.partition("-")
            start = address(memory)
            inside = int(first, 16) < start + SIZE and start < int(last, 16)
        elif inside and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) * 1024
    return found


def test_only_what_was_taken_since_is_meant() -> None:
    before = anonymous_memory()
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    taken = taken_since(before)
    assert sum(last - first for first, last in taken) < SIZE + (64 << 20)
    start = address(memory)
    assert any(first <= start and start + SIZE <= last for first, last in taken)
    assert taken_since(anonymous_memory()) == []


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], [(10, 20)]),
        ([(0, 30)], []),
        ([(12, 14)], [(10, 12), (14, 20)]),
        ([(0, 12), (18, 30)], [(12, 18)]),
        ([(0, 10), (20, 30)], [(10, 20)]),
    ],
)
def test_ranges_without_others(others: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    assert without([(10, 20)], others) == left


@given(st.lists(st.integers(0, 60), unique=True), st.lists(st.integers(0, 60), unique=True))
def test_many_ranges_without_many(bounds: list[int], others: list[int]) -> None:
    ranges, taken = pairs(bounds), pairs(others)
    left = without(ranges, taken)
    assert members(left) == members(ranges) - members(taken)
    assert all(first < last for first, last in left)


def pairs(bounds: list[int]) -> list[tuple[int, int]]:
    ascending = sorted(bounds)
    return list(zip(ascending[::2], ascending[1::2], strict=False))


def members(ranges: list[tuple[int, int]]) -> set[int]:
    return {n for first, last in ranges for n in range(first, last)}


@pytest.mark.skipif("[never]" in policy(), reason="the administrator allows no large pages")
def test_whole_memory_is_gathered_and_untouched_memory_is_not_made() -> None:
    whole = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(whole, np.uint8)
    values[:] = np.arange(SIZE, dtype=np.uint8)
    unused = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    gathering = HugePages([(address(m), address(m) + SIZE) for m in (whole, unused)])
    gathering.start()
    gathering.wait()
    assert gathering.gathered >= 1
    assert large_bytes(whole) >= gathering.gathered * HUGE
    assert large_bytes(unused) == 0
    assert np.array_equal(values, np.arange(SIZE, dtype=np.uint8))


def test_memory_that_is_gone_is_passed_over() -> None:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address(memory)
    memory.close()
    gathering = HugePages([(start, start + SIZE)])
    gathering.start()
    gathering.stop()
    assert gathering.gathered <= SIZE // HUGE


def test_the_administrator_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "enabled"
    file.write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "_POLICY", file)
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(memory, np.uint8)[:] = 1
    gathering = HugePages([(address(memory), address(memory) + SIZE)])
    gathering.start()
    gathering.stop()
    assert gathering.gathered == 0
