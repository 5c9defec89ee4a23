"""Pages of mapped weights are given back, and nothing else is."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paddock.engines.openvino.mapped_pages import MappedPages

SIZE = 32 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident(mapping: mmap.mmap) -> int:
    """Bytes of a mapping that are in this process's memory now."""
    address = np.frombuffer(mapping, np.uint8).ctypes.data
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in (span := line.split()[0]) and not span.endswith(":"):
            start, _, end = span.partition("-")
            inside = int(start, 16) <= address < int(end, 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("not mapped")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def test_pages_go_and_come_back(file: Path) -> None:
    mapping = mapped(file)
    # A view of a view, as a part of a slot is.
    array = np.frombuffer(mapping, np.uint8)[4096:].view(np.int16).reshape(-1, 8)[16:]
    before = int(array.sum(dtype=np.int64))
    assert resident(mapping) > SIZE * 0.9
    pages = MappedPages()
    pages.add(array)
    pages.release()
    assert resident(mapping) < SIZE * 0.1
    assert int(array.sum(dtype=np.int64)) == before


def test_pages_go_while_others_read(file: Path) -> None:
    mapping = mapped(file)
    array = np.frombuffer(mapping, np.uint8)
    pages = MappedPages()
    pages.add(array)
    with pages.releasing():
        array.sum()
        deadline = time.monotonic() + 60
        while resident(mapping) > SIZE * 0.1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        array.sum()
    assert resident(mapping) < SIZE * 0.1


def test_pages_go_when_the_body_fails(file: Path) -> None:
    mapping = mapped(file)
    pages = MappedPages()
    pages.add(np.frombuffer(mapping, np.uint8))

    def failing() -> None:
        with pages.releasing():
            np.frombuffer(mapping, np.uint8).sum()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing()
    assert resident(mapping) < SIZE * 0.1


def test_memory_that_is_not_a_read_only_file_is_left_alone(file: Path) -> None:
    with file.open("rb") as stream:
        private = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    written = np.frombuffer(private, np.uint8)
    written[...] = 7
    own = np.full(SIZE, 7, np.uint8)
    anonymous = mmap.mmap(-1, SIZE)
    pooled = np.frombuffer(anonymous, np.uint8)
    pooled[...] = 7
    pages = MappedPages()
    for array in (written, own, pooled):
        pages.add(array)
    with pages.releasing():
        pages.release()
    for array in (written, own, pooled):
        assert (array == 7).all()
