"""The driver's side of an engine's process: starting it, asking it, and keeping it still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class WorkerError(RuntimeError):
    """An engine's process failed; the text says which, at what, and where its log is."""


class UnsupportedPrecision(Exception):
    """The engine says that it cannot do a precision, and why."""


def busy_seconds() -> float:
    """CPU seconds that all processes of this machine have used, time taken by a hypervisor too."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / CLOCK_TICKS


@dataclass(frozen=True)
class Measured:
    answer: dict[str, Any]
    others: float
    """Share of the machine's CPUs that was used by anything else meanwhile, 0 to 1."""


class WorkerProcess:
    """One engine in its own process, stopped (SIGSTOP) whenever it is not asked something.

    Thread pools of most engines spin for a while after their work; a stopped process cannot.
    """

    def __init__(self, command: list[str], *, log: Path, threads: int) -> None:
        self.log = log
        self.command = command
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        # Settings that replace NumPy's matrix kernels are for other work than this.
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            environment.pop(name, None)
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                env=environment,
            )

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    @contextmanager
    def running(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGSTOP)

    def ask(self, **request: Any) -> Measured:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.running():
            start, busy, own = time.perf_counter(), busy_seconds(), self.cpu_seconds()
            self.process.stdin.write(json.dumps(request) + "\n")
            line = self.process.stdout.readline()
            if not line:
                code = self.process.wait()
                raise WorkerError(
                    f"{' '.join(self.command)} ended with {code} at {request}: see {self.log}"
                )
            wall = time.perf_counter() - start
            used = (busy_seconds() - busy) - (self.cpu_seconds() - own)
        answer = json.loads(line)
        if "unsupported" in answer:
            raise UnsupportedPrecision(answer["unsupported"])
        if "error" in answer:
            raise WorkerError(f"{' '.join(self.command)} at {request}: {answer['error']}")
        return Measured(answer, max(0.0, used / (wall * (os.cpu_count() or 1))))

    def close(self) -> None:
        """End the process, however it is."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


def wait_until_quiet(*, limit: float, patience_s: float) -> None:
    """Return once others use less than `limit` of the CPUs for a quarter of a second."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(0.25)
        if (busy_seconds() - before) / (0.25 * (os.cpu_count() or 1)) < limit:
            return
