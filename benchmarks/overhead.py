"""Start-up and what the runtime adds to real steps.

    python benchmarks/overhead.py --work FOLDER [--precisions f32 bf16 int8 int4] [--json FILE]

- `import paddock`: wall time over that of an interpreter that imports nothing, and the modules
  that took most of it (`-X importtime`).
- Opening a built engine, demo and 0.5B: in a fresh process, from the composed recipe to a session
  that has run its first step; and the whole of `LLM(...)`, which is ready for requests.
- Eight sequences of the 0.5B model decoding through the loop: how much of a step is not the
  engine's. `scheduling.py` takes the same without an engine, and in more cases.

FOLDER is the one of `peers.py`: its model is used, and made if need be. Files are in the page
cache, as after a first use.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import machine
from random_llama import Shape, write
from report import spread

PRECISIONS = {
    "f32": ["dtype=f32"],
    "bf16": ["dtype=bf16"],
    "int8": ["quant=int8"],
    "int4": ["quant=int4"],
}
SEQUENCES, CONTEXT, STEPS = 8, 128, 48

# Each runs in a process of its own: NAME OVERRIDE... are its arguments.
OPEN = """
import json, sys, time
from paddock.recipes.compose import compose
from paddock.recipes import pipeline
recipe = compose(sys.argv[1], sys.argv[2:]).recipe
start = time.perf_counter()
built = pipeline.build(recipe)
found = time.perf_counter()
session = pipeline.open_engine(built, recipe)
print(json.dumps({"find_s": found - start, "open_s": time.perf_counter() - found}))
session.close()
"""
READY = """
import json, sys, time
start = time.perf_counter()
from paddock import LLM, SamplingParams
llm = LLM(*sys.argv[1:])
ready = time.perf_counter()
llm.generate([[300, 301, 302]], SamplingParams(max_tokens=1))
print(json.dumps({"ready_s": ready - start, "first_token_s": time.perf_counter() - start}))
llm.close()
"""


def wall(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def import_time(rounds: int) -> dict[str, Any]:
    """Seconds that `import paddock` adds, and the largest own times of modules, milliseconds."""
    bare = [sys.executable, "-c", "pass"]
    ours = [sys.executable, "-c", "import paddock"]
    pairs = [(wall(bare), wall(ours)) for _ in range(rounds)]
    trace = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import paddock"],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    own = []
    for line in trace.splitlines():
        cells = line.removeprefix("import time:").split("|")
        if cells[0].strip().isdigit():
            own.append((int(cells[0]) / 1000, cells[2].strip()))
    return {
        "added_s": [with_it - without for without, with_it in pairs],
        "modules": len(own),
        "largest_ms": sorted(own, reverse=True)[:8],
    }


def in_fresh_process(program: str, recipe: list[str], rounds: int) -> dict[str, list[float]]:
    """The seconds a program prints, by name, from so many fresh processes."""
    runs = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", program, *recipe], check=True, stdout=subprocess.PIPE, text=True
        )
        runs.append(json.loads(done.stdout))
    return {name: [run[name] for run in runs] for name in runs[0]}


def decode_share(recipe: list[str]) -> dict[str, Any]:
    """Where the time of decode steps of full batches goes; seconds, medians over steps."""
    import numpy as np

    from paddock import LLM, SamplingParams
    from paddock.runtime.scheduling.request import Request
    from paddock.runtime.stats import StepReport

    reports: list[StepReport] = []

    class Collect:
        def on_step(self, report: StepReport) -> None:
            reports.append(report)

        def on_finish(self, request: Request) -> None:
            pass

    random = np.random.default_rng(0)
    llm = LLM(recipe[0], *recipe[1:], f"limits.max_sequences={SEQUENCES}")
    llm.running.loop.add_listener(Collect())
    params = SamplingParams(max_tokens=STEPS, temperature=0.0, ignore_eos=True)
    for _ in range(2):  # the first round warms up
        reports.clear()
        prompts = [random.integers(300, 31_000, CONTEXT).tolist() for _ in range(SEQUENCES)]
        llm.generate(prompts, params)
    llm.close()
    full = [r for r in reports if r.sequences == SEQUENCES and r.tokens == SEQUENCES]
    starts = [report.started for report in full]
    # From start to start: whatever passes between the steps counts too.
    whole = [b - a for a, b in pairwise(starts)]
    return {
        "steps": len(full),
        "step_s": statistics.median(whole),
        "engine_s": statistics.median(r.run_s for r in full),
        "plan_s": statistics.median(r.plan_s for r in full),
        "sample_s": statistics.median(r.sample_s for r in full),
        "commit_s": statistics.median(r.commit_s for r in full),
        "share": statistics.median(
            1 - report.run_s / seconds for report, seconds in zip(full, whole, strict=False)
        ),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    model = options.work / "model"
    write(model, Shape())
    os.environ["PADDOCK_HOME"] = str(options.work / "paddock-home")
    results: dict[str, Any] = {
        "machine": machine(),
        "import": import_time(options.rounds),
        "opening": {},
        "decode_8": {},
    }
    recipes = {"demo": ["demo"]}
    for precision in options.precisions:
        recipes[precision] = ["auto", f"checkpoint={model}", *PRECISIONS[precision]]
    for name, recipe in recipes.items():
        in_fresh_process(OPEN, recipe, 1)  # builds, where that was not done
        results["opening"][name] = {
            **in_fresh_process(OPEN, recipe, options.rounds),
            **in_fresh_process(READY, recipe, options.rounds),
        }
        if name != "demo":
            results["decode_8"][name] = decode_share(recipe)
    return results


def show(results: dict[str, Any]) -> None:
    taken = results["import"]
    print(f"import paddock: {spread(taken['added_s'], 3)} s, {taken['modules']} modules")
    print("  most: " + ", ".join(f"{name} {own:.0f} ms" for own, name in taken["largest_ms"]))
    for name, seconds in results["opening"].items():
        print(
            f"{name}: found in the cache in {spread(seconds['find_s'], 2)} s, opened in"
            f" {spread(seconds['open_s'], 2)} s; from the import to ready"
            f" {spread(seconds['ready_s'], 2)} s, to the first token"
            f" {spread(seconds['first_token_s'], 2)} s"
        )
    for name, part in results["decode_8"].items():
        print(
            f"{name}, {SEQUENCES} sequences: {part['share']:.1%} of a step of"
            f" {part['step_s'] * 1e3:.2f} ms is not the engine's"
            f" (plan {part['plan_s'] * 1e6:.0f}, sample {part['sample_s'] * 1e6:.0f},"
            f" commit {part['commit_s'] * 1e6:.0f} us; {part['steps']} steps)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="as for peers.py")
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = measure(options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
