"""The process that one engine lives in: commands as JSON lines in, answers as JSON lines out.

The driver (`benchmarks/peers.py`) starts one such process per engine and lets one of them compute
at a time. A command is `{"do": NAME, ...}`; its answer is a JSON object, or `{"error": TEXT}`.

- `open`: load the model. Answers load_s, engine, version, settings and memory before and after.
- `prefill` {tokens}: one prompt in a new sequence, up to its first token. Answers seconds.
- `decode` {sequences, context, steps}: prompts of `context` tokens (not timed), then `steps` steps
  of all sequences together, each up to its chosen token. Answers seconds of every step.
- `check` {prompt, steps, logits}: greedy tokens after a fixed prompt, and the logits that chose the
  first of them as a .npy file where the engine shows logits.
- `memory`: this process's memory, MB.

This file needs NumPy alone, so that it runs in any engine's environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CAPACITY_TOKENS = 2048  # what every engine reserves its KV cache for, where it reserves ahead
PRECISIONS = ("f32", "bf16", "int8", "int4", "int4-g128")


class Unsupported(Exception):
    """The engine cannot do this precision; the text is the reason, for the table."""


class Peer(Protocol):
    """An opened engine. A step ends with the greedy choice, so all engines do the same work."""

    engine: str
    version: str
    settings: dict[str, str]

    def begin(self, prompts: Sequence[np.ndarray], steps: int) -> None:
        """Forget earlier sequences; compute i64 [C] prompts up to their first tokens.

        `steps` more steps will follow.
        """

    def advance(self) -> None:
        """Compute one more token of every sequence."""

    def generated(self) -> list[list[int]]:
        """Tokens since `begin`, by sequence; the first comes from the prompt."""

    def logits(self) -> np.ndarray | None:
        """f32 [sequences, vocabulary] of the latest step; None where the engine hides them."""


def memory() -> dict[str, float]:
    """Peak and present resident memory of this process, MB (10^6 bytes), and what is in it."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem"):
            fields[name] = round(int(value.split()[0]) * 1024 / 1e6, 1)
    return fields


class Worker:
    def __init__(self, open_peer: Callable[[], Peer]) -> None:
        self.open_peer = open_peer
        self.random = np.random.default_rng(1)
        self.peer: Peer | None = None

    def prompt(self, tokens: int) -> np.ndarray:
        # Ids from 300 on: no special token, and none of the single bytes.
        return self.random.integers(300, 31_000, tokens)

    def opened(self) -> Peer:
        if self.peer is None:
            raise RuntimeError("send `open` first")
        return self.peer

    def open(self) -> dict[str, Any]:
        before = memory()
        start = time.perf_counter()
        self.peer = peer = self.open_peer()
        seconds = time.perf_counter() - start
        return {
            "engine": peer.engine,
            "version": peer.version,
            "settings": peer.settings,
            "load_s": seconds,
            "memory_before": before,
            "memory_loaded": memory(),
        }

    def prefill(self, tokens: int) -> dict[str, Any]:
        peer, prompt = self.opened(), self.prompt(tokens)
        start = time.perf_counter()
        peer.begin([prompt], 0)
        return {"seconds": time.perf_counter() - start}

    def decode(self, sequences: int, context: int, steps: int) -> dict[str, Any]:
        peer = self.opened()
        peer.begin([self.prompt(context) for _ in range(sequences)], steps)
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            peer.advance()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def check(self, prompt: list[int], steps: int, logits: str) -> dict[str, Any]:
        peer = self.opened()
        peer.begin([np.array(prompt, np.int64)], steps)
        values = peer.logits()
        if values is not None:
            np.save(logits, values[0])
        for _ in range(steps):
            peer.advance()
        return {"tokens": peer.generated()[0], "logits": values is not None}

    def memory(self) -> dict[str, Any]:
        return memory()

    def serve(self) -> None:
        # Libraries print to stdout as they like; answers go out through a copy of it alone.
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            name: getattr(self, name) for name in ("open", "prefill", "decode", "check", "memory")
        }
        for line in sys.stdin:
            request = json.loads(line)
            name = request.pop("do")
            if name == "close":
                break
            try:
                answer = commands[name](**request)
            except Unsupported as error:
                answer = {"unsupported": str(error)}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
        answers.close()
        sys.stderr.flush()
        os._exit(0)  # some engines crash in their destructors; everything measured is out by now


def main(
    prepare: Callable[[Path, str, Path], None],
    open_peer: Callable[[Path, str, Path, int], Peer],
) -> None:
    """`SCRIPT prepare|serve MODEL PRECISION FOLDER THREADS`.

    `prepare(model, precision, folder)` converts the checkpoint for the engine into `folder`, once;
    it raises `Unsupported` where the engine cannot.
    """
    verb, model, precision, folder, threads = sys.argv[1:]
    if precision not in PRECISIONS:
        raise SystemExit(f"{precision}: no such precision; there are {', '.join(PRECISIONS)}")
    if verb == "prepare":
        try:
            prepare(Path(model), precision, Path(folder))
        except Unsupported as error:
            (Path(folder) / "unsupported.txt").write_text(str(error))
        return
    Worker(lambda: open_peer(Path(model), precision, Path(folder), int(threads))).serve()
