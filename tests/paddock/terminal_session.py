"""A process on a terminal of its own, as a person would drive it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

# Opening it gives a process that leads a session its controlling terminal, so that Ctrl-C comes as
# a signal. The process of the tests has threads and must not fork by itself: what their libraries
# hold at that moment would stay locked in the child.
_ON_ITS_TERMINAL = (
    "import os, sys;"
    " os.close(os.open(os.ttyname(0), os.O_RDWR));"
    " os.execv(sys.argv[1], sys.argv[1:])"
)


class TerminalSession:
    """Type with `send`, read with `expect`. What was shown so far is `shown`."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._terminal, inside = pty.openpty()
        termios.tcsetwinsize(inside, (50, 400))  # so that long lines are not scrolled
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_ITS_TERMINAL, sys.executable, "-m", "paddock", *arguments],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**environment, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(inside)
        self.pid = self._process.pid
        self.shown = ""
        self._read = 0  # how much of it `expect` has passed

    def send(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def press_ctrl_c(self) -> None:
        """The terminal makes it a SIGINT for the foreground process."""
        self.send("\x03")

    def expect(self, text: str, timeout_s: float = 180.0) -> str:
        """Wait until `text` is shown after what was expected before; what came until then."""
        end = time.monotonic() + timeout_s
        while (found := self.shown.find(text, self._read)) < 0:
            if not self._more(end):
                raise AssertionError(f"{text!r} was not shown; shown was:\n{self.shown}")
        before = self.shown[self._read : found]
        self._read = found + len(text)
        return before

    def expect_prompt(self, timeout_s: float = 180.0) -> None:
        """Wait until a line is being edited: readline has the terminal, and sleeps.

        What it shows last does not tell: the prompt is there before the signals are taken.
        """
        end = time.monotonic() + timeout_s
        asleep = 0
        while asleep < 3:
            self._more(min(end, time.monotonic() + 0.02))
            edited = not termios.tcgetattr(self._terminal)[3] & termios.ICANON
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if edited and state == "S" else 0
            if time.monotonic() > end:
                raise AssertionError(f"no line is edited; shown was:\n{self.shown}")

    def wait(self, timeout_s: float = 180.0) -> int:
        """The exit code, when it has ended."""
        end = time.monotonic() + timeout_s
        while (status := self._process.poll()) is None:
            self._more(min(end, time.monotonic() + 0.05))
            if time.monotonic() > end:
                raise AssertionError(f"it did not end; shown was:\n{self.shown}")
        while self._more(time.monotonic()):  # what it showed last
            pass
        return status

    def _more(self, end: float) -> bool:
        """Read what is there; false at the end of the process's output, or of the time."""
        ready, _, _ = select.select([self._terminal], [], [], max(end - time.monotonic(), 0.0))
        if not ready:
            return False
        try:
            content = os.read(self._terminal, 65536)
        except OSError:  # Linux says EIO where the other end is closed
            return False
        self.shown += content.decode(errors="replace").replace("\r\n", "\n")
        return bool(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)
