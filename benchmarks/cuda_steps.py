"""Steps of an 8B model on one GPU: `python -m benchmarks.cuda_steps`.

Random weights in the shape of Llama-3.1-8B. Every figure is the median over windows of steps that
follow each other as in the engine loop: a step is launched while the one before runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.cuda_model import LLAMA_8B, opened
from paddock.engines.cuda.gpu import GPU
from paddock.engines.cuda.session import CUDASession
from paddock.engines.protocol import Choices, StepInputs

DECODE = ["1x1024", "2x1024", "4x1024", "8x1024", "64x1024", "256x512", "512x192"]


def step_of(
    session: CUDASession, past: np.ndarray[Any, Any], new: np.ndarray[Any, Any], blocks: int
) -> StepInputs:
    """Sequences with `past` cached and `new` tokens each, in blocks of their own."""
    needed = -(-(past + new) // session.block_size)
    starts = np.cumsum([0, *new]).astype(np.int32)
    random = np.random.default_rng(0)
    table = random.permutation(blocks)[: needed.sum()].astype(np.int32)
    return StepInputs(
        token_ids=random.integers(0, session.vocab_size, starts[-1]).astype(np.int64),
        positions=np.concatenate([np.arange(p, p + n) for p, n in zip(past, new, strict=True)]),
        sequence_starts=starts,
        past_lengths=past.astype(np.int32),
        block_table=table,
        block_starts=np.cumsum([0, *needed]).astype(np.int32),
        sequence_slots=np.arange(len(past), dtype=np.int32),
        logit_rows=(starts[1:] - 1).astype(np.int64),
    )


def decode_ms(session: CUDASession, sequences: int, context: int, blocks: int) -> float:
    """Milliseconds of a step of one token each."""
    past = np.full(sequences, context - 1)
    step = step_of(session, past, np.ones(sequences, np.int64), blocks)
    slots = np.arange(sequences, dtype=np.int32)
    choices = Choices.greedy(slots)
    for _ in range(3):
        session.choose(step, choices)
        session.chosen()
    fed = StepInputs(**{**vars(step), "token_ids": -1 - slots.astype(np.int64)})
    windows = []
    for _ in range(5):
        began = time.perf_counter()
        session.choose(fed, choices)
        for _ in range(19):
            session.choose(fed, choices)
            session.chosen()
        session.chosen()
        windows.append((time.perf_counter() - began) / 20 * 1e3)
    return statistics.median(windows)


def prompt_ms(session: CUDASession, tokens: int, blocks: int) -> float:
    """Milliseconds from a prompt to its first token."""
    step = step_of(session, np.zeros(1, np.int64), np.array([tokens]), blocks)
    choices = Choices.greedy(np.zeros(1, np.int32))
    taken = []
    for _ in range(8):
        began = time.perf_counter()
        session.choose(step, choices)
        session.chosen()
        taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken[3:])


def bandwidth(gpu: GPU) -> float:
    """Bytes a second of a large device-to-device copy, read and written."""
    cp = gpu.cupy
    x, y = (gpu.zeros((2 << 30,), np.dtype(np.uint8)) for _ in range(2))
    with gpu.stream:
        taken = []
        for _ in range(10):
            begin, end = cp.cuda.Event(), cp.cuda.Event()
            begin.record(gpu.stream)
            y[...] = x
            end.record(gpu.stream)
            end.synchronize()
            taken.append(cp.cuda.get_elapsed_time(begin, end) / 1e3)
    return 2 * x.nbytes / statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="+", default=["bf16"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--decode", nargs="*", default=DECODE, help="sequences x context")
    parser.add_argument("--prompts", nargs="*", type=int, default=[128, 1024, 8000])
    parser.add_argument("--cache", default="auto", help="element type of keys and values: fp8")
    parser.add_argument("--json")
    args = parser.parse_args()
    gpu = GPU()
    rate = bandwidth(gpu)
    report: dict[str, Any] = {"gpu": gpu.name, "copy_tb_s": rate / 1e12}
    print(f"{gpu.name}: copy {rate / 1e12:.2f} TB/s", flush=True)
    config = LLAMA_8B | {"num_hidden_layers": args.layers}
    for precision in args.precision:
        began = time.perf_counter()
        session, _ = opened(gpu, config, precision=precision, cache_dtype=args.cache)
        print(f"{precision}: opened in {time.perf_counter() - began:.1f} s", flush=True)
        free, _ = gpu.memory()
        blocks = int(min(free * 0.6, 40e9)) // session.block_bytes
        session.allocate_cache(blocks)
        for case in args.decode:
            sequences, context = map(int, case.split("x"))
            try:
                taken = decode_ms(session, sequences, context, blocks)
            except Exception as error:  # the other figures are wanted all the same
                print(f"{precision} {sequences} x {context}: {error!r}", flush=True)
                continue
            report[f"{precision} decode {sequences} x {context}"] = taken
            print(f"{precision} decode {sequences} x {context}: {taken:.3f} ms", flush=True)
        for tokens in args.prompts:
            try:
                taken = prompt_ms(session, tokens, blocks)
            except Exception as error:
                print(f"{precision} prompt {tokens}: {error!r}", flush=True)
                continue
            report[f"{precision} prompt {tokens}"] = taken
            print(f"{precision} prompt of {tokens}: {taken:.2f} ms", flush=True)
        session.allocate_cache(1)
        del session
        gpu.cupy.get_default_memory_pool().free_all_blocks()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
