"""Compile in a process of its own: what the compiler prints, leaks or dies of stays there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.engines.protocol import BuildError, WeightSource
from paddock.engines.tensorrt.bounds import Bounds
from paddock.engines.tensorrt.plan import GRAPH, LOG, Plan
from paddock.engines.tensorrt.plugin import modules_of
from paddock.engines.tensorrt.weights import EXTERNAL
from paddock.graph import Graph
from paddock.graph.serialize import to_json

REQUEST, FAILURE, PRINTED = "request.json", "failure.txt", "printed.log"
_LAST_LINES = 8  # of its output, of a compiler that died

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Request:
    """What is to be compiled."""

    graph: Graph
    package: str
    targets: tuple[str, ...]
    bounds: Bounds
    weights: str
    ranks: int

    def as_json(self) -> dict[str, Any]:
        return {
            "package": self.package,
            "targets": list(self.targets),
            "bounds": self.bounds.as_json(),
            "weights": self.weights,
            "ranks": self.ranks,
            "modules": modules_of(self.graph),
        }


def compile_in_subprocess(
    request: Request, weights: WeightSource | None, progress: Progress | None
) -> Plan:
    """The plan. Raises `BuildError` with the compiler's words, also where the compiler dies.

    Embedded weights are opened again by the other process, from the folder of `BoundWeights`.
    """
    with tempfile.TemporaryDirectory(prefix="paddock-tensorrt-") as name:
        folder = Path(name)
        (folder / GRAPH).write_text(to_json(request.graph), "utf-8")
        told = request.as_json()
        if request.weights != EXTERNAL:
            told["bound"] = _places(weights)
        (folder / REQUEST).write_text(json.dumps(told), "utf-8")
        status = _run(folder, progress)
        failure = folder / FAILURE
        if failure.exists():
            raise BuildError(failure.read_text("utf-8") + _kept(folder))
        if status:
            raise BuildError(
                f"TensorRT's compiler {_death(status)} while it built for"
                f" {', '.join(request.targets)}; its last words:\n{_last_words(folder)}"
                + _kept(folder)
            )
        return Plan.load(folder)


def _run(folder: Path, progress: Progress | None) -> int:
    read, write = os.pipe()
    with (folder / PRINTED).open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "paddock.engines.tensorrt.compile", str(folder), str(write)],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            pass_fds=[write],
        )
    os.close(write)
    try:
        with os.fdopen(read, encoding="ascii") as lines:
            for line in lines:
                if progress is not None:
                    progress(float(line), 1.0)
        return process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _places(weights: WeightSource | None) -> list[str]:
    from paddock.weights.bound import BoundWeights

    if not isinstance(weights, BoundWeights):
        raise BuildError("embedded weights must lie in a folder of bound weights")
    return [str(weights.folder), str(weights.checkpoint or "")]


def _death(status: int) -> str:
    if status > 0:
        return f"ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if name == "SIGKILL":
        return (
            "died (SIGKILL, as of a machine that is out of memory; paddock build NAME --estimate"
            " says what a build takes)"
        )
    return f"died ({name})"


def _last_words(folder: Path) -> str:
    lines: list[str] = []
    for name in (LOG, PRINTED):
        file = folder / name
        if file.exists():
            lines += file.read_text("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (none)"


def _kept(folder: Path) -> str:
    """Where the whole log was put, for a person to look at."""
    log = folder / LOG
    if not log.exists():
        return ""
    handle, name = tempfile.mkstemp(prefix="paddock-tensorrt-", suffix=".log")
    with os.fdopen(handle, "wb") as kept:
        kept.write(log.read_bytes())
        printed = folder / PRINTED
        if printed.exists():
            kept.write(printed.read_bytes())
    return f"\n  the compiler's whole log: {name}"
