"""Log lines on stderr: for people, or a JSON object each; every one with its request's id.

A line that cannot be written (a full disk, a closed pipe) is lost, and nothing else is.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

from paddock.runtime.server.request_context import request_id


def set_up(form: Literal["json", "text"]) -> None:
    """Log to stderr from now on, uvicorn's lines included, and nowhere else."""
    handler = _QuietHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class _QuietHandler(logging.StreamHandler):  # type: ignore[type-arg]
    def handleError(self, record: logging.LogRecord) -> None:
        """There is nowhere to tell of it."""


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if own_id := request_id.get():
            line["request_id"] = own_id
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), record.levelname.lower(), _one_line(record.getMessage())]
        words += [f"{key}={value}" for key, value in getattr(record, "facts", {}).items()]
        if own_id := request_id.get():
            words.append(f"request_id={own_id}")
        line = " ".join(map(_one_line, words))
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _one_line(text: object) -> str:
    """Without control characters: a path that a client made up must not forge a line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def _time(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"
