"""How fast an engine loop is: prefill, decode, latencies, and how near to the memory's limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from threading import Lock
from typing import Self

import numpy as np

from paddock.graph import Graph
from paddock.graph.ops import Gather, Weight
from paddock.graph.tensor import fixed
from paddock.runtime.loop import Loop
from paddock.runtime.outputs import RequestResult
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.request import Request
from paddock.runtime.stats import StepReport


@dataclass(frozen=True)
class Workload:
    """`sequences` prompts that arrive together, each of random tokens, each continued greedily."""

    sequences: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Percentiles:
    """Of seconds, by nearest rank: each is a value that was measured."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        ordered = sorted(values)
        return cls(*(ordered[math.ceil(q * len(ordered)) - 1] for q in (0.5, 0.9, 0.99)))


@dataclass(frozen=True)
class Measurement:
    """Rates are medians over the rounds; latencies are pooled over all sequences and rounds."""

    workload: Workload
    rounds: int
    prefill_tokens_per_s: float
    """Prompt tokens of all, from the arrival of the first prompt to the last first token."""
    decode_tokens_per_s: float | None
    """Tokens of all sequences together, while all of them decode. None: at no time all did."""
    to_first_token_s: Percentiles
    between_tokens_s: Percentiles
    overhead: float
    """The part of the steps' time that was spent outside the engine: planning, sampling."""
    decode_context: float
    """Tokens in the cache of each sequence, on average over the decoding that was timed."""

    def decode_bytes_per_s(self, weight_bytes: int, cache_bytes_per_token: float) -> float | None:
        """Memory that decoding has to read: all weights for each step, each sequence's cache."""
        if self.decode_tokens_per_s is None:
            return None
        cached = self.workload.sequences * self.decode_context * cache_bytes_per_token
        return self.decode_tokens_per_s / self.workload.sequences * (weight_bytes + cached)


def measure(
    loop: Loop, vocab_size: int, workload: Workload, *, rounds: int = 3, seed: int = 0
) -> Measurement:
    """Run a workload `rounds` times, after a short one that is not counted.

    The loop must have nothing else to do. Every prompt is new, so that no prefix is found in the
    cache. Raises `RequestError` where the workload does not fit into the loop's limits.
    """
    random = np.random.default_rng(seed)
    _run(loop, random, vocab_size, Workload(workload.sequences, workload.prompt_tokens, 2))
    steps = _Steps()
    loop.add_listener(steps)
    prefill: list[float] = []
    decode: list[float] = []
    contexts: list[float] = []
    first: list[float] = []
    between: list[float] = []
    for _ in range(rounds):
        results = _run(loop, random, vocab_size, workload)
        times = [result.timing.token_times[0] for result in results]
        arrived = min(result.timing.arrival for result in results)
        all_decode, one_ends = max(t[0] for t in times), min(t[-1] for t in times)
        prompt_tokens = workload.sequences * workload.prompt_tokens
        prefill.append(prompt_tokens / (all_decode - arrived))
        if one_ends > all_decode:
            inside = [sum(all_decode < moment <= one_ends for moment in t) for t in times]
            decode.append(sum(inside) / (one_ends - all_decode))
            before = [sum(moment <= all_decode for moment in t) for t in times]
            contexts.append(
                workload.prompt_tokens
                + sum(b + i / 2 for b, i in zip(before, inside, strict=True)) / len(times)
            )
        first += [result.timing.to_first_token_s or math.nan for result in results]
        between += [later - earlier for t in times for earlier, later in pairwise(t)]
    return Measurement(
        workload=workload,
        rounds=rounds,
        prefill_tokens_per_s=median(prefill),
        decode_tokens_per_s=median(decode) if decode else None,
        to_first_token_s=Percentiles.of(first),
        between_tokens_s=Percentiles.of(between),
        overhead=steps.overhead,
        decode_context=median(contexts) if contexts else math.nan,
    )


def bytes_read_per_step(graph: Graph) -> int:
    """Bytes of the weights that a step reads whole.

    These are all but the tables of which rows are picked; a table that is the vocabulary head too
    is read.
    """
    read = {
        operand.node
        for node in graph.nodes
        for position, operand in enumerate(node.inputs)
        if not (isinstance(node.op, Gather) and position == 0)
    }
    total = 0
    for node in graph.find(Weight):
        assert isinstance(node.op, Weight)
        if node in read:
            total += math.prod(fixed(node.op.shape)) * node.op.dtype.bits // 8
    return total


class _Steps:
    """Adds up where the steps' time goes. A `Listener` of the loop."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._engine_s = 0.0
        self._overhead_s = 0.0

    def on_step(self, report: StepReport) -> None:
        with self._lock:
            self._engine_s += report.run_s
            self._overhead_s += report.overhead_s

    def on_finish(self, request: Request) -> None:
        """Steps are all that counts here."""

    @property
    def overhead(self) -> float:
        with self._lock:
            total = self._engine_s + self._overhead_s
            return self._overhead_s / total if total else 0.0


def _run(
    loop: Loop, random: np.random.Generator, vocab_size: int, workload: Workload
) -> list[RequestResult]:
    params = SamplingParams(temperature=0.0, max_tokens=workload.new_tokens, ignore_eos=True)
    prompts = random.integers(0, vocab_size, (workload.sequences, workload.prompt_tokens))
    handles = [loop.submit(prompt.tolist(), params) for prompt in prompts]
    try:
        return [handle.result() for handle in handles]
    except BaseException:
        for handle in handles:
            handle.cancel()
        raise
