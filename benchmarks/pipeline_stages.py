"""What a second pipeline stage gives: two ranks of one thread beside one process of one thread.

    python benchmarks/pipeline_stages.py FOLDER [--rounds 3] [--sequences 16] [key=value ...]

FOLDER is a checkpoint, e.g. what random_llama.py writes. Both are kept open and take turns. The
load is prompts with short answers, all at once: compute dominates. A core for each stage is
assumed. The ratio is that of tokens a second, prompts and answers together; 2 would be perfect.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median

import numpy as np

from paddock.recipes import pipeline
from paddock.recipes.compose import compose
from paddock.runtime.sampling.sampling_params import SamplingParams


def start(folder: Path, stages: int, overrides: list[str]) -> pipeline.Running:
    settings = [f"checkpoint={folder}", f"mesh.pp={stages}", "engine.threads=1", "verify=false"]
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
    one, two = (start(given.folder, stages, given.overrides) for stages in (1, 2))
    try:
        ratios = []
        for seed in range(given.rounds + 1):
            load = (given.sequences, given.prompt, given.answer, seed)
            alone, staged = tokens_per_s(one, *load), tokens_per_s(two, *load)
            if seed:  # the first warms up
                ratios.append(staged / alone)
                print(f"one {alone:.0f} tokens/s, two stages {staged:.0f}: {ratios[-1]:.2f}")
        print(f"median {median(ratios):.2f} of one stage's, {median(ratios) / 2:.2f} of twice it")
    finally:
        two.close()
        one.close()


if __name__ == "__main__":
    main()
