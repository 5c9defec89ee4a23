"""What a second pipeline stage gives: two ranks of one thread beside one process of one thread.

    python benchmarks/pipeline_stages.py FOLDER [--rounds 3] [--sequences 16] [key=value ...]

FOLDER is a checkpoint, e.g. what random_llama.py writes. The load is prompts with short answers,
all at once: compute dominates. All are kept open and take turns. A core for each stage is assumed;
how far the machine has two to give is shown by two replicas of one thread (`mesh.dp=2`), which
divide the requests and wait for nothing of each other. The ratio is that of tokens a second,
prompts and answers together; 2 would be perfect. A sample whose threads were ready, but had no
core, for a tenth of its time is printed, and not counted.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from report import DISTURBED

from paddock.recipes import pipeline
from paddock.recipes.compose import compose
from paddock.runtime.sampling.sampling_params import SamplingParams

MESHES = {"one": "mesh.pp=1", "two stages": "mesh.pp=2", "two replicas": "mesh.dp=2"}


def start(folder: Path, mesh: str, overrides: list[str]) -> pipeline.Running:
    settings = [f"checkpoint={folder}", mesh, "engine.threads=1", "verify=false"]
    return pipeline.start(compose("auto", [*settings, *overrides]).recipe)


def tokens_per_s(
    running: pipeline.Running, sequences: int, prompt: int, answer: int, seed: int
) -> float:
    random = np.random.default_rng(seed)
    prompts = random.integers(0, running.session.vocab_size, (sequences, prompt)).tolist()
    params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)
    began = time.perf_counter()
    handles = [running.loop.submit(one, params) for one in prompts]
    for handle in handles:
        assert len(handle.result().sequences[0].token_ids) == answer
    return sequences * (prompt + answer) / (time.perf_counter() - began)


def waited_s(processes: list[psutil.Process]) -> float:
    """Seconds that their threads were ready to run and had no core."""
    places = [place for one in processes for place in Path(f"/proc/{one.pid}/task").iterdir()]
    return sum(int((place / "schedstat").read_text().split()[1]) for place in places) / 1e9


def measured(running: pipeline.Running, threads: int, *load: int) -> tuple[float, float]:
    """Tokens a second, and for how much of that time its threads had to wait for a core."""
    own = [psutil.Process(), *psutil.Process().children(recursive=True)]
    before, began = waited_s(own), time.perf_counter()
    speed = tokens_per_s(running, *load)
    return speed, (waited_s(own) - before) / (time.perf_counter() - began) / threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--answer", type=int, default=16)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores; {given.sequences} x ({given.prompt} + {given.answer}) tokens")
    opened = {name: start(given.folder, mesh, given.overrides) for name, mesh in MESHES.items()}
    speeds: dict[str, list[float]] = {name: [] for name in MESHES}
    try:
        for seed in range(given.rounds + 1):
            load = (given.sequences, given.prompt, given.answer, seed)
            for name, running in opened.items():
                speed, waited = measured(running, 1 if name == "one" else 2, *load)
                print(f"{name}: {speed:.0f} tokens/s, waited {waited:.1%}", flush=True)
                if seed and waited < DISTURBED:  # the first warms up
                    speeds[name].append(speed)
    finally:
        for running in reversed(opened.values()):
            running.close()
    if not all(speeds.values()):
        raise SystemExit("others disturbed every sample of one; close them, or take priority")
    one = median(speeds["one"])
    for name in ("two stages", "two replicas"):
        ratio = median(speeds[name]) / one
        print(f"{name}: {ratio:.2f} of one ({len(speeds[name])} samples), {ratio / 2:.2f} of twice")


if __name__ == "__main__":
    main()
