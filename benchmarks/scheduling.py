"""What the runtime adds to a step: planning, sampling and committing, beside an engine that costs
nothing.

    python benchmarks/scheduling.py [--json FILE]

The session returns random logits at once, so all the time that passes is the runtime's own. Each
case decodes in a full batch; the figures are medians over steps. Text is made by the demo
checkpoint's tokenizer. The cases `after` and `queued` show that a step costs the same however many
requests were finished before, and however many wait.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import paddock
from paddock.engines.protocol import StepInputs
from paddock.graph.dtype import Array
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.handle import RequestHandle
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.request import Request
from paddock.runtime.stats import StepReport
from paddock.runtime.text.tokenizer import Tokenizer

VOCAB_SIZE = 32_000
BLOCK_SIZE = 32
PROMPT_TOKENS = 128
STEPS = 300

GREEDY: dict[str, Any] = {"temperature": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "temperature": {"temperature": 0.8, "seed": 1},
    "top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 1},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
    "stop strings": {"temperature": 0.0, "stop": ("\n\nUser:", "</answer>")},
}


@dataclass(frozen=True)
class Case:
    """A full batch, decoding."""

    name: str
    sequences: int
    params: dict[str, Any]
    finished_before: int = 0
    queued: int = 0


CASES = [
    *(Case(name, 8, params) for name, params in SETTINGS.items()),
    *(Case(name, 64, params) for name, params in SETTINGS.items()),
    Case("after 10000 requests", 8, GREEDY, finished_before=10_000),
    Case("5000 queued", 8, GREEDY, queued=5_000),
]


@dataclass(frozen=True)
class Measured:
    """Microseconds of one step."""

    case: str
    sequences: int
    plan_us: float
    sample_us: float
    commit_us: float
    step_us: float
    """From one step's start to the next one's: also publishing, listeners, commands."""
    step_p99_us: float


class FreeSession:
    """An engine that costs nothing: the same random logits every time."""

    block_size = BLOCK_SIZE
    block_bytes = 1
    state_bytes = 0
    vocab_size = VOCAB_SIZE

    def __init__(self, rows: int) -> None:
        generator = np.random.default_rng(1)
        self._logits = generator.standard_normal((rows, VOCAB_SIZE), np.float32) * 3
        self.gate = threading.Event()
        self.gate.set()

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        pass

    def run(self, step: StepInputs) -> Array:
        self.gate.wait()
        logits: Array = self._logits[: len(step.logit_rows)]
        return logits

    def close(self) -> None:
        pass


class Reports:
    """Remembers every step."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_finish(self, request: Request) -> None:
        pass


def measure(case: Case, tokenizer: Tokenizer) -> Measured:
    """Run one case."""
    limits = Limits(
        max_sequences=case.sequences,
        max_tokens_per_step=max(512, case.sequences),
        max_context=4096,
        cache_blocks=case.sequences * 40,
        max_queued_requests=100_000,
        max_queued_tokens=100_000_000,
    )
    reports = Reports()
    session = FreeSession(case.sequences)
    with EngineLoop(session, limits, tokenizer=tokenizer) as loop:
        for start in range(0, case.finished_before, 100):
            count = min(100, case.finished_before - start)
            short = SamplingParams(max_tokens=2, **GREEDY)
            for handle in [loop.submit(prompt(start + index), short) for index in range(count)]:
                handle.result()
        loop.add_listener(reports)
        session.gate.clear()  # until everything is submitted
        params = SamplingParams(max_tokens=STEPS + 100, ignore_eos=True, **case.params)
        running = [loop.submit(prompt(index), params) for index in range(case.sequences)]
        waiting: list[RequestHandle] = [
            loop.submit(prompt(index), params) for index in range(case.queued)
        ]
        session.gate.set()
        for handle in running:
            handle.result()
        for handle in waiting:
            handle.cancel()
    return summary(case, reports.steps)


def prompt(index: int) -> list[int]:
    """Token ids, others for each index."""
    ids: list[int] = np.random.default_rng(index).integers(5, 2000, PROMPT_TOKENS).tolist()
    return ids


def summary(case: Case, steps: list[StepReport]) -> Measured:
    full = [
        (step, following.started - step.started)
        for step, following in pairwise(steps)
        if step.sampled == step.tokens == case.sequences
    ][10 : STEPS - 10]
    between = sorted(seconds for _, seconds in full)

    def us(seconds: list[float]) -> float:
        return statistics.median(seconds) * 1e6

    return Measured(
        case=case.name,
        sequences=case.sequences,
        plan_us=us([step.plan_s for step, _ in full]),
        sample_us=us([step.sample_s for step, _ in full]),
        commit_us=us([step.commit_s for step, _ in full]),
        step_us=us(between),
        step_p99_us=between[int(0.99 * len(between))] * 1e6,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--only", help="cases whose name holds this")
    arguments = parser.parse_args()
    tokenizer = Tokenizer(Path(paddock.__file__).parent / "demo")
    measured: list[Measured] = []
    print(f"{'case':24}{'seqs':>5}{'plan':>9}{'sample':>9}{'commit':>9}{'step':>9}{'p99':>9}  us")
    for case in CASES:
        if arguments.only and arguments.only not in case.name:
            continue
        one = measure(case, tokenizer)
        measured.append(one)
        print(
            f"{one.case:24}{one.sequences:5}{one.plan_us:9.0f}{one.sample_us:9.0f}"
            f"{one.commit_us:9.0f}{one.step_us:9.0f}{one.step_p99_us:9.0f}"
        )
        sys.stdout.flush()
        time.sleep(0.1)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in measured], indent=2))


if __name__ == "__main__":
    main()
