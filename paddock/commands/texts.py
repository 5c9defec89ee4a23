"""The texts of `embed` and `classify`: from the command line, stdin or a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.commands.arguments import CommandParser, UsageError
from paddock.commands.prompts import decode


@dataclass(frozen=True)
class Text:
    """One input, and what was said about it."""

    content: str | tuple[str, str] | list[int]
    id: Any = None

    def record(self, index: int) -> dict[str, Any]:
        """How an answer begins."""
        return {"index": index} | ({} if self.id is None else {"id": self.id})


def add_text_arguments(parser: CommandParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("texts", "with none of these, stdin has one a line")
    group.add_argument(
        "--text", "-t", metavar="TEXT", action="append", default=[], help="may be given often"
    )
    group.add_argument(
        "--texts-file", metavar="FILE", help="one text a line, or JSON lines; `-` is stdin"
    )
    group.add_argument(
        "--truncate",
        choices=("end", "start", "never"),
        default="end",
        help="where texts that are too long are cut; never: they are refused",
    )
    return group


def gather(texts: Sequence[str], file: str | None) -> list[Text]:
    """Those of `--text`, then the file's. Raises `UsageError` that names the line."""
    if not texts and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("no text; give --text TEXT, --texts-file FILE, or lines on stdin")
        file = "-"
    found = [Text(text) for text in texts]
    if file is not None:
        found += _lines(file)
    if not found:
        raise UsageError(f"{file}: no texts in it")
    return found


def _lines(file: str) -> Iterator[Text]:
    name = "stdin" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    lines = [(n, line) for n, line in enumerate(decode(content, name).split("\n"), 1) if line]
    as_json = Path(file).suffix.lower() in (".jsonl", ".ndjson")
    as_json = as_json or (bool(lines) and lines[0][1].lstrip().startswith("{"))
    for number, line in lines:
        if as_json:
            yield _json_text(line, f"{name}:{number}")
        else:
            yield Text(line.rstrip("\r"))


def _json_text(line: str, origin: str) -> Text:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{origin}: not a line of JSON: {error}") from None
    match value:
        case str():
            return Text(value)
        case {"text": str(text), **rest} if not rest.keys() - {"id"}:
            return Text(text, rest.get("id"))
        case {"pair": [str(first), str(second)], **rest} if not rest.keys() - {"id"}:
            return Text((first, second), rest.get("id"))
        case {"tokens": list(ids), **rest} if ids and all(type(i) is int for i in ids):
            if not rest.keys() - {"id"}:
                return Text(ids, rest.get("id"))
    raise UsageError(
        f'{origin}: expected {{"text": "..."}}, {{"pair": ["...", "..."]}} or'
        ' {"tokens": [...]}, with "id" where wanted'
    )
