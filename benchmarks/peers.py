"""Paddock beside llama.cpp, openvino-genai, onnxruntime-genai and transformers, in one run.

    python benchmarks/peers.py --peers-python PEERS/bin/python --work FOLDER

All engines run one random Llama (`random_llama.py`) at one precision and on the same number of
threads, each in a process of its own that is stopped while another computes. Rounds alternate:
every figure is taken from every engine, then again in another order, so that a machine that
changes its speed does so under all of them. A measurement that other work disturbed is repeated.

README.md beside this file says how to make the peers' environment and how to read the results.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import machine
from random_llama import Shape, write
from report import DISTURBED, OURS, as_markdown, as_text
from worker_process import (
    Measured,
    UnsupportedPrecision,
    WorkerError,
    WorkerProcess,
    wait_until_quiet,
)

HERE = Path(__file__).parent
ENGINES = {
    OURS: "run_paddock.py",
    "llama.cpp": "run_llama_cpp.py",
    "openvino-genai": "run_openvino_genai.py",
    "onnxruntime-genai": "run_onnxruntime_genai.py",
    "transformers": "run_transformers.py",
}
BYTES_PER_VALUE = {
    "f32": 4.0,
    "bf16": 2.0,
    "int8": 1.0,  # scales, one a row, are not worth counting
    "int4": 0.5 + 2 / 32,  # a group's scale in 16 bits
    "int4-g128": 0.5 + 2 / 128,
}
REFERENCE = "transformers"  # its f32 logits are what every engine is compared with
CHECK_PROMPT = list(range(400, 2000, 50))
CHECK_STEPS = 15


@dataclass(frozen=True)
class Figure:
    """One row of the table: what is asked of a worker, and how tokens/s follow from the answer."""

    name: str
    request: dict[str, Any]
    tokens: int  # of one step

    def tokens_per_second(self, answer: dict[str, Any]) -> float:
        seconds = answer["seconds"]
        # The median step: one that the machine interrupted says nothing about the engine.
        return self.tokens / (statistics.median(seconds) if isinstance(seconds, list) else seconds)


FIGURES = (
    Figure("decode@128", {"do": "decode", "sequences": 1, "context": 128, "steps": 32}, 1),
    Figure("decode@1024", {"do": "decode", "sequences": 1, "context": 1024, "steps": 24}, 1),
    Figure("prefill 512", {"do": "prefill", "tokens": 512}, 512),
    Figure("8 x decode@128", {"do": "decode", "sequences": 8, "context": 128, "steps": 12}, 8),
)


class Bench:
    """The engines that are open at one precision, and how a figure is taken from one of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.shape = Shape()
        self.model: Path = options.work / "model"
        self.workers: dict[str, WorkerProcess] = {}

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold the lock that others on this machine agree on, if there is one."""
        if self.options.lock is None:
            yield
            return
        with self.options.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def command(self, engine: str, verb: str, precision: str) -> list[str]:
        python = sys.executable if engine == OURS else str(self.options.peers_python)
        return [
            *(python, str(HERE / "adapters" / ENGINES[engine]), verb, str(self.model), precision),
            *(str(self.folder(engine, precision)), str(self.options.threads)),
        ]

    def folder(self, engine: str, precision: str) -> Path:
        return self.options.work / "engines" / f"{engine}-{precision}"

    def prepare(self, engine: str, precision: str) -> None:
        """Convert the model for the engine unless that is done. Raises `UnsupportedPrecision`.

        Ours is asked each time: it knows best whether what it built before is still right.
        """
        folder = self.folder(engine, precision)
        reason = folder / "unsupported.txt"
        if engine == OURS or not (folder / "prepared").exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.say(f"{precision}: converting the model for {engine}")
            log = folder / "prepare.log"
            with log.open("w") as output:
                done = subprocess.run(
                    self.command(engine, "prepare", precision), stdout=output, stderr=output
                )
            if done.returncode:
                raise WorkerError(f"converting for {engine} at {precision} failed: see {log}")
            (folder / "prepared").touch()
        if reason.exists():
            raise UnsupportedPrecision(reason.read_text())
        for path in [*folder.rglob("*"), *self.model.iterdir()]:
            if path.is_file():
                read_once(path)

    def start(self, engine: str, precision: str) -> Measured:
        """A fresh process with the model open; it takes the place of an earlier one."""
        if engine in self.workers:
            self.workers.pop(engine).close()
        self.demand_memory(engine, precision)
        log = self.folder(engine, precision) / "serve.log"
        worker = WorkerProcess(
            self.command(engine, "serve", precision), log=log, threads=self.options.threads
        )
        self.workers[engine] = worker
        worker.ask(do="memory")  # imports are over when this comes back
        wait_until_quiet(limit=DISTURBED, patience_s=self.options.patience)
        return worker.ask(do="open")

    def bandwidth(self) -> float:
        """Bytes per second, measured in a process of this session, so with its priority."""
        command = [sys.executable, "-m", "paddock.runtime.bandwidth", str(self.options.threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return float(done.stdout)

    def demand_memory(self, engine: str, precision: str) -> None:
        """Stop before an engine's opening could push the machine out of memory."""
        # The hungriest engine met so far held the weights two and a half times while it loaded.
        needed = 2.5 * self.shape.values * BYTES_PER_VALUE[precision] + 1e9
        free = psutil.virtual_memory().available
        if free < needed:
            raise SystemExit(
                f"{engine} at {precision} may need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                "free: name fewer --engines, or wait until other work has ended"
            )

    def measure(self, engine: str, request: dict[str, Any]) -> Measured:
        """The least disturbed of the tries; one undisturbed try is enough."""
        best: Measured | None = None
        for _ in range(self.options.tries):
            wait_until_quiet(limit=DISTURBED, patience_s=self.options.patience)
            now = self.workers[engine].ask(**request)
            if best is None or now.others < best.others:
                best = now
            if best.others < DISTURBED:
                break
        assert best is not None
        return best

    def check(self, engine: str, precision: str) -> dict[str, Any]:
        """How close the engine is to the reference: greedy tokens, and logits where it has them."""
        path = self.folder(engine, precision) / "logits.npy"
        request = {"prompt": CHECK_PROMPT, "steps": CHECK_STEPS, "logits": str(path)}
        answer = self.workers[engine].ask(do="check", **request).answer
        result: dict[str, Any] = {"tokens": answer["tokens"]}
        reference = self.options.work / "reference.json"
        if engine == REFERENCE and precision == "f32" and not reference.exists():
            np.save(self.options.work / "reference.npy", np.load(path))
            reference.write_text(json.dumps(answer["tokens"]))
        if reference.exists():
            tokens = json.loads(reference.read_text())
            pairs = zip(answer["tokens"], tokens, strict=True)
            result["equal_tokens"] = next(
                (at for at, (mine, right) in enumerate(pairs) if mine != right), len(tokens)
            )
            result["of"] = len(tokens)
            if answer["logits"]:
                expected = np.load(self.options.work / "reference.npy")
                result["correlation"] = float(np.corrcoef(np.load(path), expected)[0, 1])
        return result

    def precision(self, precision: str) -> dict[str, Any]:
        engines: dict[str, dict[str, Any]] = {}
        for engine in self.options.engines:
            try:
                self.prepare(engine, precision)
                engines[engine] = {"load_s": []}
            except UnsupportedPrecision as error:
                engines[engine] = {"unsupported": str(error)}
        able = [engine for engine, result in engines.items() if "unsupported" not in result]
        for again in range(self.options.loads):
            with self.quiet():
                for engine in able:
                    opened = self.start(engine, precision).answer
                    engines[engine]["load_s"].append(opened.pop("load_s"))
                    engines[engine].update(opened)
                    self.say(
                        f"{precision}: {engine} opened in {engines[engine]['load_s'][again]:.2f} s"
                    )
        for engine in able:
            engines[engine]["check"] = self.check(engine, precision)
            first = self.workers[engine].ask(do="memory").answer
            engines[engine]["memory_first"] = first
        figures: dict[str, dict[str, list[dict[str, float]]]] = {
            figure.name: {engine: [] for engine in able} for figure in FIGURES
        }
        order = random.Random(0)
        bandwidth = []
        for round_number in range(self.options.rounds + 1):
            shuffled = order.sample(able, len(able))
            for figure in FIGURES:
                with self.quiet():
                    for engine in shuffled:
                        taken = self.measure(engine, figure.request)
                        if round_number == 0:
                            continue  # warms up: kernels are chosen and pages touched
                        value = figure.tokens_per_second(taken.answer)
                        sample = {"value": value, "others": taken.others}
                        figures[figure.name][engine].append(sample)
            with self.quiet():
                bandwidth.append(self.bandwidth() / 1e9)
            if round_number:
                line = ", ".join(
                    f"{figure} "
                    + " ".join(f"{samples[-1]['value']:.1f}" for samples in values.values())
                    for figure, values in figures.items()
                )
                self.say(f"{precision}: round {round_number} ({' '.join(able)}): {line}")
        for engine in able:
            engines[engine]["memory_end"] = self.workers[engine].ask(do="memory").answer
            self.workers.pop(engine).close()
        return {
            "engines": engines,
            "figures": figures,
            "bandwidth_gb_s": bandwidth,
            "weight_bytes_per_token": self.shape.values_read_per_token * BYTES_PER_VALUE[precision],
        }

    def run(self) -> dict[str, Any]:
        self.options.work.mkdir(parents=True, exist_ok=True)
        write(self.model, self.shape)
        results: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            "command": " ".join(["python", "benchmarks/peers.py", *self.options.arguments]),
            "machine": machine(),
            "threads": self.options.threads,
            "model": {
                "values_read_per_token": self.shape.values_read_per_token,
                "values": self.shape.values,
                "embedding_values": self.shape.vocab_size * self.shape.hidden_size,
                "cache_values_per_token": self.shape.cache_values_per_token,
            },
            "precisions": {},
        }
        try:
            for precision in self.options.precisions:
                results["precisions"][precision] = self.precision(precision)
        finally:
            for worker in self.workers.values():
                worker.close()
        return results


def read_once(path: Path) -> None:
    """Bring a file into the page cache: load times are taken with warm files, for all alike."""
    with path.open("rb", buffering=0) as file:
        while file.read(16 << 20):
            pass


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peers-python", type=Path, required=True, help="the peers' interpreter")
    parser.add_argument("--work", type=Path, required=True, help="a folder for models (20 GB)")
    parser.add_argument(
        "--precisions", nargs="+", default=["f32", "bf16", "int8", "int4"], choices=BYTES_PER_VALUE
    )
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted")
    parser.add_argument("--loads", type=int, default=3, help="fresh starts of every engine")
    parser.add_argument("--tries", type=int, default=5, help="at a figure that others disturb")
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait for quiet")
    parser.add_argument("--lock", type=Path, help="a lock file that other timings here hold too")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    options = parser.parse_args(arguments)
    options.arguments = arguments
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    results = Bench(options).run()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(as_markdown(results))
    print(as_text(results))


if __name__ == "__main__":
    main()
