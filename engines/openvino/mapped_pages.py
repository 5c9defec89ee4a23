"""Give memory back while OpenVINO repacks weights that are mapped from files."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paddock.graph import Array

INTERVAL_S = 0.02  # repacking reads some GB/s: tens of MB are resident between two visits


class MappedPages:
    """The file mappings under a model's weights.

    OpenVINO copies the weights of matrix products into layouts of its own, most of them in the
    first inference. The pages of the files that it read then count as this process's memory,
    beside the copies, although nobody reads them again. Dropping them is safe at any time: they
    are the file's, and a page that is read after all comes back from the file.
    """

    def __init__(self) -> None:
        self._mappings: dict[int, mmap.mmap] = {}

    def add(self, array: Array) -> None:
        """Note the mapping under an array, if it is one, and of a file that cannot be written."""
        mapping = _mapping_under(array)
        if mapping is not None:
            self._mappings[id(mapping)] = mapping

    def release(self) -> None:
        for mapping in self._mappings.values():
            mapping.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def releasing(self) -> Iterator[None]:
        """Drop pages again and again while the body runs, and once behind it."""
        if not self._mappings:
            yield
            return
        done = threading.Event()

        def drop() -> None:
            while not done.wait(INTERVAL_S):
                self.release()

        thread = threading.Thread(target=drop, name="paddock-release-pages", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.release()


def _mapping_under(array: Array) -> mmap.mmap | None:
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if base is None or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    # What was written to a private mapping would be lost.
    return base if memoryview(base).readonly else None
