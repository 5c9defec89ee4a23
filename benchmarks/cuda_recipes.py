"""Steps of an 8B model on one GPU and two, by recipe: `python -m benchmarks.cuda_recipes FOLDER`.

FOLDER is the checkpoint of random weights that `benchmarks.cuda_ready` writes. A step is the time
that one more token of each stream takes: the difference between long and short answers to prompts
of 1024 random ids, over the tokens that the long ones are longer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.cuda_ready import write
from paddock import LLM, SamplingParams

MESHES = ("mesh.tp=1", "mesh.tp=2", "mesh.pp=2")
SHORT, LONG = 17, 145


def seconds(llm: LLM, streams: int, new: int, random: np.random.Generator) -> float:
    """Of answers of `new` tokens to prompts that share nothing, all at once."""
    prompts = random.integers(5, 100_000, (streams, 1024)).tolist()
    params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
    began = time.perf_counter()
    for handle in [llm.submit(prompt, params) for prompt in prompts]:
        assert len(handle.result().sequences[0].token_ids) == new
    return time.perf_counter() - began


def measure(folder: str, overrides: list[str]) -> None:
    settings = ("engine=cuda", "verify=false", "limits.max_context=8192", *overrides)
    began = time.perf_counter()
    random = np.random.default_rng(0)
    with LLM(folder, *settings) as llm:
        print(f"ready after {time.perf_counter() - began:.1f} s", end="", flush=True)
        for streams in (1, 64):
            seconds(llm, streams, LONG, random)  # compiles and captures
            short, long = (
                min(seconds(llm, streams, n, random) for _ in "12") for n in (SHORT, LONG)
            )
            step = (long - short) / (LONG - SHORT) * 1e3
            print(f"; {streams} x 1024: {step:.3f} ms a step", end="", flush=True)
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mesh", nargs="*", default=MESHES)
    parser.add_argument("--one", action="store_true", help="this one in this process")
    args = parser.parse_args()
    if args.one:
        measure(str(args.folder), args.mesh)
        return
    if not (args.folder / "config.json").exists():
        write(args.folder)
    for mesh in args.mesh:  # a process each, for the GPU's memory
        print(f"{mesh}: ", end="", flush=True)
        command = [sys.executable, "-m", "benchmarks.cuda_recipes", str(args.folder), "--one"]
        subprocess.run([*command, "--mesh", mesh], check=False)


if __name__ == "__main__":
    main()
