"""Writing for people and for pipes: tables, JSON lines, text of a model on a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

# A model may generate escape sequences, which would let it write over the user's screen, set the
# window's title or answer in the user's name: on a terminal they are shown, not obeyed.
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_SHOWN |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def survive_any_locale() -> None:
    """Characters that the locale's encoding lacks are written as escapes, not as a failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def warn_in_one_line() -> None:
    """Warnings, and what the rooms log as such, look as errors do and do not end the command."""

    def show(message: Warning | str, *_where: object, **_more: object) -> None:
        print(f"paddock: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    warnings.showwarning = show
    logging.getLogger().addHandler(Lines(logging.WARNING))


def write_text(text: str, stream: TextIO | None = None) -> None:
    """Write a model's text at once; harmless on a terminal, unchanged elsewhere."""
    stream = stream or sys.stdout
    stream.write(text.translate(_SHOWN) if stream.isatty() else text)
    stream.flush()


def print_json(value: Any, *, indent: int | None = None) -> None:
    """One JSON value; one line unless indented."""
    ascii_only = (sys.stdout.encoding or "ascii").lower().replace("-", "") != "utf8"
    print(json.dumps(value, ensure_ascii=ascii_only, indent=indent, default=str), flush=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their content; on a terminal lines are cut at its edge."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for number, row in enumerate([header, *rows]):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        if edge is not None and len(line) > edge:
            line = line[: edge - 1] + "…"
        print(faint(line) if number == 0 else line)


def faint(text: str, stream: TextIO | None = None) -> str:
    """Text that stands back, on terminals that show it (https://no-color.org)."""
    stream = stream or sys.stdout
    plain = not stream.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[2m{text}\033[0m"


def remark(text: str) -> None:
    """A line beside the output, on stderr."""
    print(faint(text, sys.stderr), file=sys.stderr, flush=True)


def format_bytes(count: float) -> str:
    """`11.0 MiB`, with binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """`12 ms`, `1.8 s`, `3 min 20 s`, `5 h`, `12 days`."""
    if seconds < 0.1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
