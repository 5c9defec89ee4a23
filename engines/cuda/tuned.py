"""Which algorithm was fastest for each shape of a product, remembered on this machine."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


class Tuned:
    """Choices by shape, in a file for one GPU and one release of its library.

    A file of another GPU or release, or a damaged one, counts as empty and is written anew. Where
    it cannot be written the choices last as long as the process: tuning again costs seconds.
    """

    def __init__(self, file: Path | None, machine: str) -> None:
        self._file, self._machine = file, machine
        self._known = _read(file, machine) if file is not None else {}

    def get(self, shape: str) -> int | None:
        """The index of the algorithm among those proposed for `shape`, if it was tried before."""
        return self._known.get(shape)

    def put(self, shape: str, algorithm: int) -> None:
        self._known[shape] = algorithm
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have tried other shapes meanwhile.
            known = _read(self._file, self._machine) | self._known
            written = self._file.with_suffix(f".{os.getpid()}")
            text = json.dumps({"machine": self._machine, "chosen": known}, indent=1)
            written.write_text(text, "utf-8")
            written.replace(self._file)
        except OSError as error:
            logger.warning("%s: what was tuned is not kept: %s", self._file, error)
            self._file = None


def _read(file: Path, machine: str) -> dict[str, int]:
    try:
        found = json.loads(file.read_text("utf-8"))
        if found["machine"] == machine:
            return {str(k): v for k, v in found["chosen"].items() if type(v) is int and v >= 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return {}
