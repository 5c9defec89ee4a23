"""Long work as a person sees it: a bar for each stage on a terminal, lines elsewhere."""

from __future__ import annotations

import shutil
import sys
from typing import Any, TextIO


class ProgressBars:
    """Draws on stderr; a `Progress` of `paddock.recipes.progress`.

    A terminal gets one bar at a time, which stays when its stage is done. A file or pipe gets the
    notes alone.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._bar: Any = None
        self._stage = ""

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def update(self, stage: str, done: float, total: float | None, unit: str) -> None:
        """Move the stage's bar, which is made with the first call."""
        if not self._terminal:
            return
        if self._bar is not None and stage != self._stage:
            self.close()
        if self._bar is None:
            if total is not None and done >= total:
                return  # it was done before anybody could have watched
            self._bar, self._stage = _bar(self._stream, stage, total, unit), stage
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if total is not None and done >= total:
            self.close()

    def close(self) -> None:
        """Leave the last bar as it is; the next line begins below it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar(stream: TextIO, stage: str, total: float | None, unit: str) -> Any:
    from tqdm import tqdm

    in_bytes = unit == "bytes"
    if total is None:
        form = "{desc} {elapsed}"  # nobody knows how far it is
    elif in_bytes or unit:
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
    else:
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}]"
    return tqdm(
        desc=f"{stage:<8}",
        total=total,
        unit="B" if in_bytes else unit,
        unit_scale=in_bytes,
        unit_divisor=1024,
        file=stream,
        ncols=min(shutil.get_terminal_size().columns, 100),
        bar_format=form,
        leave=True,
    )
