"""Many requests at once through the engine loop: `python -m benchmarks.cuda_throughput`.

An 8B model of random weights; prompts of random token ids, all submitted at once, each answered by
a fixed number of tokens, greedily. Tokens/s: those generated over the time until the last answer.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks.cuda_model import LLAMA_8B, opened
from paddock.engines.cuda.gpu import GPU
from paddock.engines.cuda.session import CUDASession
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.stats import StepReport


class Watch:
    """Where the loop's time goes."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0
        self.plan_s = self.run_s = 0.0

    def on_step(self, report: StepReport) -> None:
        self.steps += 1
        self.tokens += report.tokens
        self.plan_s += report.plan_s
        self.run_s += report.run_s

    def on_finish(self, request: Any) -> None: ...


class Kept:
    """A session that outlives the loops over it."""

    def __init__(self, session: CUDASession) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def close(self) -> None: ...


def measure(
    session: CUDASession, requests: int, prompt: int, answer: int, limits: Limits
) -> dict[str, float]:
    """One workload."""
    random = np.random.default_rng(prompt)
    prompts = [random.integers(0, session.vocab_size, prompt).tolist() for _ in range(requests)]
    params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)
    watch = Watch()
    with EngineLoop(Kept(session), limits) as loop:
        loop.add_listener(watch)
        began = time.perf_counter()
        handles = [loop.submit(p, params) for p in prompts]
        generated = sum(len(h.result().sequences[0].token_ids) for h in handles)
        taken = time.perf_counter() - began
    assert generated == requests * answer
    return {
        "tokens_per_s": generated / taken,
        "seconds": taken,
        "steps": watch.steps,
        "plan_ms": watch.plan_s / watch.steps * 1e3,
        "rest_ms": watch.run_s / watch.steps * 1e3,
        "tokens_per_step": watch.tokens / watch.steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8"])
    parser.add_argument("--workloads", nargs="+", default=["3000x128/128"])
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--cache", default="auto", help="element type of keys and values: fp8")
    parser.add_argument("--json")
    args = parser.parse_args()
    gpu = GPU()
    print(gpu.name, flush=True)
    report: dict[str, Any] = {"gpu": gpu.name}
    for precision in args.precision:
        session, _ = opened(gpu, LLAMA_8B, precision=precision, cache_dtype=args.cache)
        free, _ = gpu.memory()
        blocks = int((free - session.step_bytes) * 0.85) // session.block_bytes
        limits = Limits(
            max_sequences=args.sequences,
            max_tokens_per_step=args.tokens,
            max_context=8192,
            cache_blocks=blocks,
            max_queued_requests=100_000,
            max_queued_tokens=100_000_000,
        )
        for workload in args.workloads:
            count, _, lengths = workload.partition("x")
            prompt, answer = map(int, lengths.split("/"))
            try:
                # The first run compiles, times algorithms and captures.
                measure(session, min(int(count), 1200), prompt, answer, limits)
                found = measure(session, int(count), prompt, answer, limits)
            except Exception as error:
                print(f"{precision} {workload}: {error!r}", flush=True)
                continue
            report[f"{precision} {workload}"] = found
            told = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
            print(f"{precision} {workload}: {told}", flush=True)
        session.allocate_cache(1)
        del session
        gpu.cupy.get_default_memory_pool().free_all_blocks()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
