"""Processes of Paddock that have already imported what its commands do.

Run as a program, this imports it once and then forks: each request on standard input becomes a
process of its own, which runs `python -m paddock` from there on as any other does, with its own
arguments, folder, files in the place of standard input and output, and end. Only the second that an
interpreter takes to start is saved, in every one of a hundred tests.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

IMPORTED = (
    "paddock.__main__",
    "paddock.commands.generate",
    "paddock.llm",
    "paddock.recipes.pipeline",
    "paddock.recipes.compose",
    "paddock.engines.openvino.engine",
    "paddock.engines.openvino.session",
    "tokenizers",
)

READ_LATE = {"PADDOCK_HOME"}
"""Variables of the environment that matter to nothing that is imported."""


class PreparedProcess:
    """The program that forks, from the side of the tests."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._free = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        arguments: Sequence[str],
        variables: dict[str, str],
        folder: Path,
        files: Path,
        stdin: bytes,
    ) -> subprocess.CompletedProcess[str] | None:
        """Like `subprocess.run` of `python -m paddock`; None where another is running.

        `files` is an empty folder. `variables` are those of `READ_LATE`.
        """
        if not self._free.acquire(blocking=False):
            return None
        try:
            places = [files / name for name in ("stdin", "stdout", "stderr")]
            places[0].write_bytes(stdin)
            request = {
                "arguments": list(arguments),
                "variables": variables,
                "folder": str(folder),
                "files": list(map(str, places)),
            }
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            said = [place.read_bytes().decode() for place in places[1:]]
            return subprocess.CompletedProcess(list(arguments), code, *said)
        finally:
            self._free.release()

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def become_one_that_is_asked_for() -> bool:
    """In a new process for each request: true. In this one, when no more come: false."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            for number, path in enumerate(request["files"]):
                os.dup2(os.open(path, flags if number else os.O_RDONLY), number)
            # The old one has read ahead.
            fresh = io.BufferedReader(io.FileIO(0, closefd=False))
            sys.stdin = io.TextIOWrapper(fresh, sys.stdin.encoding, sys.stdin.errors)
            os.chdir(request["folder"])
            os.environ.update(request["variables"])
            sys.argv = ["paddock", *request["arguments"]]
            return True
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return False


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, which `python -m` does not have
    for module in IMPORTED:
        importlib.import_module(module)
    if become_one_that_is_asked_for():
        del sys.modules["paddock.__main__"]  # as runpy expects
        runpy.run_module("paddock", run_name="__main__", alter_sys=True)
