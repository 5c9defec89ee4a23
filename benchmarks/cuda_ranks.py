"""Two GPUs: NCCL inside captured graphs, the demo's text at tp=2, and a decode step of 8B's shape.

    python benchmarks/cuda_ranks.py CHECKPOINT_FOLDER

The ranks are processes that meet through shared memory of this script, not MPI: the engine only
asks its communicator to hand NCCL's id on.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from paddock.engines import cuda
from paddock.engines.cuda.nccl import Place
from paddock.engines.protocol import StepInputs
from paddock.graph import Array, DType, Mesh
from paddock.layers import trace
from paddock.models import registry

PROMPTS = [[5, 17, 300, 42, 9], [101, 7, 7, 250, 33, 12, 90], [64, 2, 900]]
NEW = 32
SIZES = (4096, 16384, 65536, 262144, 1 << 20, 16 << 20)  # bf16 values


class Meeting:
    """A communicator between processes, for what little is said before NCCL is there."""

    def __init__(self, rank: int, ranks: int, shared: Any, barrier: Any) -> None:
        self.rank, self.ranks, self._shared, self._barrier = rank, ranks, shared, barrier

    def _all(self, x: Array) -> list[Array]:
        self._shared[self.rank] = np.array(x)
        self._barrier.wait(60)
        every = [np.asarray(self._shared[rank]) for rank in range(self.ranks)]
        self._barrier.wait(60)
        return every

    def broadcast(self, x: Array) -> Array:
        return self._all(x)[0]

    def all_gather(self, x: Array) -> Array:
        return np.concatenate(self._all(x), -1)

    def all_reduce(self, x: Array) -> Array:
        return np.sum(self._all(x), axis=0)

    def reduce_scatter(self, x: Array) -> Array:
        return np.split(self.all_reduce(x), self.ranks, -1)[self.rank]

    def send(self, x: Array) -> None:
        raise AssertionError("no pipeline here")

    receive = send


def rank_main(rank: int, ranks: int, shared: Any, barrier: Any, results: Any, folder: str) -> None:
    """One rank, on the GPU of its number."""
    import cupy

    cupy.cuda.Device(rank).use()
    meeting = Meeting(rank, ranks, shared, barrier)
    for name, what in (("all_reduce", reduce), ("demo", demo), ("8B", decode_8b)):
        began = time.monotonic()
        try:
            told: Any = what(meeting, folder)
        except Exception:
            told = traceback.format_exc()
            barrier.abort()
        results.put((ranks, rank, name, told, round(time.monotonic() - began, 1)))
        if barrier.broken:
            return


def reduce(meeting: Meeting, folder: str) -> dict[str, Any]:
    """Sums inside a captured graph, right to the last bit, and microseconds by size."""
    from paddock.engines.cuda.gpu import GPU

    gpu = GPU(own=True)
    if meeting.ranks == 1:
        return {"gpu": gpu.name}
    gpu.join(Place(shares=True, ranks=meeting.ranks), meeting)
    cp, told = gpu.cupy, {}
    for size in SIZES:
        x, y = (gpu.zeros((size,), DType.BF16.numpy) for _ in range(2))
        values = np.random.default_rng([size, meeting.rank]).integers(-8, 8, size)
        x = gpu.upload(values.astype(DType.BF16.numpy))
        gpu.ranks.all_reduce(x, y)  # NCCL sets itself up outside of a capture
        gpu.stream.synchronize()
        gpu.stream.begin_capture()
        for _ in range(20):
            gpu.ranks.all_reduce(x, y)
        graph = gpu.stream.end_capture()
        with gpu.stream:
            y.fill(0)
        graph.launch(gpu.stream)
        gpu.stream.synchronize()
        found = cp.asnumpy(y).astype(np.float32)
        wanted = sum(
            np.random.default_rng([size, rank]).integers(-8, 8, size)
            for rank in range(meeting.ranks)
        )
        begin, end = cp.cuda.Event(), cp.cuda.Event()
        begin.record(gpu.stream)
        for _ in range(10):
            graph.launch(gpu.stream)
        end.record(gpu.stream)
        end.synchronize()
        took = cp.cuda.get_elapsed_time(begin, end) * 1e3 / 200
        told[f"{2 * size} bytes"] = {"right": bool((found == wanted).all()), "us": round(took, 2)}
        del graph  # NCCL waits for the captures that hold its kernels before it ends
    gpu.close()
    return told


def demo(meeting: Meeting, folder: str) -> list[list[int]]:
    """Greedy tokens of the bundled checkpoint in f32."""
    from safetensors.numpy import load_file

    from tests.models.bound_arrays import BoundArrays

    checkpoint = Path(folder)
    arrays: dict[str, Array] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        arrays |= load_file(file)
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    config = json.loads((checkpoint / "config.json").read_text())
    session, _ = opened(meeting, config, DType.F32, lambda m, mesh: BoundArrays(m, arrays, mesh))
    session.allocate_cache(16)
    texts = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        logits = session.run(steps([tokens], [0], session.block_size))
        for _ in range(NEW):
            tokens.append(int(logits[-1].argmax()))
            logits = session.run(steps([tokens[-1:]], [len(tokens) - 1], session.block_size))
        texts.append(tokens[len(prompt) :])
    session.close()
    return texts


def decode_8b(meeting: Meeting, folder: str) -> dict[str, float]:
    """Milliseconds of a step of 1 and of 64 sequences with 1024 tokens behind them, bf16."""
    from benchmarks.cuda_model import LLAMA_8B, RandomWeights

    session, gpu = opened(meeting, LLAMA_8B, DType.BF16, RandomWeights)
    session.allocate_cache(64 * 17 + 16)
    told = {}
    for count in (1, 64):
        step = steps([[7 + i] for i in range(count)], [1024] * count, session.block_size)
        for _ in range(4):
            session.run(step)
        begin, end = gpu.cupy.cuda.Event(), gpu.cupy.cuda.Event()
        (bound,) = [b for k, b in session._bound.items() if k.sequences >= count and k.decodes][-1:]
        assert bound.launch is not None
        begin.record(gpu.stream)
        for _ in range(50):
            bound.launch()
        end.record(gpu.stream)
        end.synchronize()
        told[f"{count} x 1024"] = round(gpu.cupy.cuda.get_elapsed_time(begin, end) / 50, 3)
        del bound  # which has a capture
    session.close()
    return told


def opened(meeting: Meeting, config: Any, dtype: DType, weights: Any) -> tuple[Any, Any]:
    from paddock.engines.cuda.gpu import GPU

    mesh = Mesh(tp=meeting.ranks, tp_rank=meeting.rank)
    model = registry.read(config).build()
    graph = trace(model, dtype=dtype, max_context=1024 if dtype is DType.F32 else 8192, mesh=mesh)
    engine, gpu = cuda.build(graph, {}), GPU(own=True)
    source = weights(model, mesh) if dtype is DType.F32 else weights(engine.graph, gpu)
    communicator: Any = meeting if meeting.ranks > 1 else None
    return engine.open(source, {}, communicator, device=gpu), gpu


def steps(tokens: list[list[int]], pasts: list[int], block: int) -> StepInputs:
    """Sequences with `tokens` new ones each, in blocks of their own."""
    counts = np.array([len(t) for t in tokens])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    blocks = [-(-(past + n) // block) for past, n in zip(pasts, counts.tolist(), strict=True)]
    return StepInputs(
        token_ids=np.concatenate([np.array(t, np.int64) for t in tokens]),
        positions=np.concatenate(
            [np.arange(p, p + n) for p, n in zip(pasts, counts.tolist(), strict=True)]
        ).astype(np.int64),
        sequence_starts=starts,
        past_lengths=np.array(pasts, np.int32),
        block_table=np.arange(sum(blocks), dtype=np.int32),
        block_starts=np.concatenate([[0], np.cumsum(blocks)]).astype(np.int32),
        sequence_slots=np.arange(len(tokens), dtype=np.int32),
        logit_rows=(starts[1:] - 1).astype(np.int64),
    )


def main() -> int:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    found: dict[tuple[int, int, str], Any] = {}
    for ranks in (1, 2):
        with context.Manager() as manager:
            shared, barrier = manager.dict(), context.Barrier(ranks)
            processes = [
                context.Process(
                    target=rank_main,
                    args=(rank, ranks, shared, barrier, results, sys.argv[1]),
                    daemon=True,
                )
                for rank in range(ranks)
            ]
            for process in processes:
                process.start()
            end = time.monotonic() + 45
            while time.monotonic() < end and any(p.is_alive() for p in processes):
                while not results.empty():
                    of, rank, name, told, took = results.get()
                    found[of, rank, name] = told
                    print(f"tp={of} rank {rank} {name} ({took} s): {told}", flush=True)
                time.sleep(0.1)
            while not results.empty():
                of, rank, name, told, took = results.get()
                found[of, rank, name] = told
                print(f"tp={of} rank {rank} {name} ({took} s): {told}", flush=True)
            for process in processes:
                process.kill()
    one = found.get((1, 0, "demo"))
    same = isinstance(one, list) and found.get((2, 0, "demo")) == found.get((2, 1, "demo")) == one
    print("the demo's tokens at tp=2 are those of one GPU:", same, flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
