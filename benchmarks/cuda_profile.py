"""One step kernel by kernel, as CUPTI saw it: `python -m benchmarks.cuda_profile` (needs torch).

torch's profiler is the one that reaches kernels inside captured graphs; nothing else of torch runs.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from benchmarks.cuda_model import LLAMA_8B, opened
from benchmarks.cuda_steps import step_of
from paddock.engines.cuda.gpu import GPU
from paddock.engines.protocol import Choices

RUNS = 5


def timeline(events: Any) -> None:
    """When each kernel of two layers in the middle of a step began and ended, us."""
    kernels = [e for e in events if not e.name.startswith(("cuda", "cu", "Activity", "Mem"))]
    kernels.sort(key=lambda e: e.time_range.start)
    middle = kernels[len(kernels) // 2 :][:16]
    for e in middle:
        begin = e.time_range.start - middle[0].time_range.start
        print(f"{begin:9.2f} {begin + e.time_range.elapsed_us():9.2f}  {e.name[:60]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", nargs="+", default=["1x1024", "64x1024", "prompt8000"])
    parser.add_argument("--timeline", action="store_true", help="each kernel of two layers")
    args = parser.parse_args()
    gpu = GPU()
    session, _ = opened(
        gpu, LLAMA_8B | {"num_hidden_layers": args.layers}, precision=args.precision
    )
    blocks = 20_000_000_000 // session.block_bytes
    session.allocate_cache(blocks)
    for name in args.steps:
        if name.startswith("prompt"):
            past, new = np.zeros(1, np.int64), np.array([int(name[6:])])
        else:
            sequences, context = map(int, name.split("x"))
            past, new = np.full(sequences, context - 1), np.ones(sequences, np.int64)
        step = step_of(session, past, new, blocks)
        choices = Choices.greedy(np.arange(len(past), dtype=np.int32))
        for _ in range(3):
            session.choose(step, choices)
            session.chosen()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(RUNS):
                session.choose(step, choices)
                session.chosen()
        spans = defaultdict(list)
        begin = end = 0.0
        for event in seen.events():
            spans[event.name].append(event.time_range.elapsed_us())
            begin = min(begin or event.time_range.start, event.time_range.start)
            end = max(end, event.time_range.end)
        if args.timeline:
            timeline(seen.events())
        total = sum(map(sum, spans.values()))
        print(f"\n{args.precision} {name}: {total / RUNS / 1e3:.3f} ms of kernels a step,", end="")
        print(f" {(end - begin) / RUNS / 1e3:.3f} ms from the first to the last")
        for kernel, taken in sorted(spans.items(), key=lambda pair: -sum(pair[1]))[:16]:
            share = sum(taken) / total
            print(
                f"{sum(taken) / RUNS / 1e3:9.3f} ms {share:6.1%} {len(taken) / RUNS:7.1f} x"
                f" {np.mean(taken):8.2f} us  {kernel[:110]}"
            )


if __name__ == "__main__":
    main()
