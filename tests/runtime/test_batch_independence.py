"""With real engines: a request's tokens are the same alone and in any company.

The model of it is no scheduler at all: the prompt in one step, then a token a step. Everything is
in f32, where sums in another order differ by some millionths. So a token may be another one where
the choice was as near as that, which happens once in a thousand tokens or less, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from paddock.engines.protocol import Session, StepInputs
from paddock.graph import Array
from paddock.recipes import pipeline
from paddock.recipes.compose import compose
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.generate import generate
from paddock.runtime.sampling.sampler import SequenceSampler, sample
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.sampling.token_filters import kept_weights
from paddock.runtime.scheduling.request import FinishReason, Request
from tests.models.opened import opened
from tests.models.parity_cases import LLAMA, Case
from tests.runtime.harness import Harness, make_limits

CONTEXT = 160


class LongCase(Case):
    max_context = CONTEXT


TINY = LongCase("batch-independence", LLAMA | {"max_position_embeddings": CONTEXT})
VOCAB = LLAMA["vocab_size"]


NEAR = 1e-4
"""Logits and probabilities this near are not told apart."""


@dataclass(frozen=True)
class Alone:
    """A request's tokens, and by how much each was chosen before another."""

    tokens: list[int]
    margins: list[float]

    def check(self, tokens: tuple[int, ...]) -> bool:
        """Whether these are the same to the end; asserts that, where not, a choice was near."""
        for index, token in enumerate(tokens):
            if token != self.tokens[index]:
                assert self.margins[index] < NEAR, f"token {index} of {tokens} is another alone"
                return False
        return True


def continue_alone(session: Session, prompt: list[int], params: SamplingParams) -> Alone:
    """The request's first sequence, with nothing between it and the engine."""
    size = session.block_size
    assert params.max_tokens is not None
    session.allocate_cache(-(-(len(prompt) + params.max_tokens) // size))
    sampler = SequenceSampler(params, prompt_token_ids=prompt, vocab_size=session.vocab_size)
    tokens, past = list(prompt), 0
    margins: list[float] = []
    for _ in range(params.max_tokens):
        new = len(tokens) - past
        step = StepInputs(
            token_ids=np.array(tokens[past:], np.int64),
            positions=np.arange(past, len(tokens)),
            sequence_starts=np.array([0, new], np.int32),
            past_lengths=np.array([past], np.int32),
            block_table=np.arange(-(-len(tokens) // size), dtype=np.int32),
            block_starts=np.array([0, -(-len(tokens) // size)], np.int32),
            sequence_slots=np.zeros(1, np.int32),
            logit_rows=np.array([new - 1], np.int64),
        )
        past = len(tokens)
        logits = session.run(step)
        margins.append(margin(logits[0], sampler))
        token = sample(logits, [sampler])[0].token_id
        sampler.append(token)
        tokens.append(token)
    return Alone(tokens[len(prompt) :], margins)


def margin(row: Array, sampler: SequenceSampler) -> float:
    """How far logits, or the random number, may move before another token is chosen."""
    if sampler.params.greedy:
        second, first = np.sort(row)[-2:].tolist()
        return float(first - second)
    bounds = np.cumsum(kept_weights(row, sampler.params))
    return float(np.abs(bounds / bounds[-1] - sampler.chance()).min())


@dataclass(frozen=True)
class Ask:
    """A request of a workload: its prompt begins as others' do, for `kept` tokens."""

    kept: int
    tail: tuple[int, ...]
    max_tokens: int
    temperature: float
    priority: int
    steps_before: int
    cancelled: bool

    @property
    def prompt(self) -> list[int]:
        return [*SHARED[: self.kept], *self.tail]

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature, seed=5, max_tokens=self.max_tokens, ignore_eos=True
        )


SHARED = np.random.default_rng(7).integers(3, VOCAB, 70).tolist()
asks = st.builds(
    Ask,
    kept=st.sampled_from([1, 5, 8, 33, 64, 70]),
    tail=st.lists(st.integers(3, VOCAB - 1), max_size=9).map(tuple),
    max_tokens=st.integers(1, 20),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    priority=st.sampled_from([0, 0, -1]),
    steps_before=st.integers(0, 6),
    cancelled=st.sampled_from([False, False, False, True]),
)


def bounds(block_size: int) -> st.SearchStrategy[dict[str, Any]]:
    """From a pool that holds one request to one that holds all."""
    return st.fixed_dictionaries(
        {
            "max_sequences": st.integers(1, 6),
            "max_tokens_per_step": st.sampled_from([6, 40, 400]),
            "prefill_chunk": st.sampled_from([None, 3, 32]),
            "cache_blocks": st.sampled_from([100 // block_size + 1, 200 // block_size, 200]),
        }
    )


@cache
def tiny_session(engine: str) -> Session:
    return opened(TINY, engine)


@cache
def alone(engine: str, ask: Ask) -> Alone:
    return continue_alone(tiny_session(engine), ask.prompt, ask.params)


def check(engine: str, limits: dict[str, Any], workload: list[Ask]) -> Harness:
    expected = [alone(engine, ask) for ask in workload]
    harness = Harness(
        make_limits(max_context=CONTEXT, max_queued_tokens=10_000, **limits),
        session=tiny_session(engine),
    )
    requests: list[Request] = []
    for ask in workload:
        harness.step(ask.steps_before)
        requests.append(
            harness.submit(ask.prompt, priority=ask.priority, **ask.params.model_dump())
        )
    for ask, request in zip(workload, requests, strict=True):
        if ask.cancelled:
            harness.step()
            harness.cancel(request)
    harness.run()
    for ask, request, model in zip(workload, requests, expected, strict=True):
        (sequence,) = harness.result(request).sequences
        model.check(sequence.token_ids)
        if sequence.finish_reason is not FinishReason.CANCELLED:
            assert len(sequence.token_ids) == ask.max_tokens
    return harness


@pytest.mark.parametrize("engine", ["reference", "openvino"])
def test_tokens_do_not_depend_on_the_company(engine: str) -> None:
    block_size = tiny_session(engine).block_size

    @settings(
        max_examples=25,
        deadline=None,
        phases=[Phase.generate],  # to make it smaller would take long, and say little
        suppress_health_check=list(HealthCheck),
    )
    @given(limits=bounds(block_size), workload=st.lists(asks, min_size=2, max_size=7))
    def workloads(limits: dict[str, Any], workload: list[Ask]) -> None:
        check(engine, limits, workload)

    workloads()


@pytest.mark.parametrize("engine", ["reference", "openvino"])
def test_nor_on_preemption_hits_and_chunks(engine: str) -> None:
    """Which this workload has all of."""
    block_size = tiny_session(engine).block_size
    limits = {
        "max_sequences": 5,
        "max_tokens_per_step": 24,
        "prefill_chunk": 11,
        "cache_blocks": 128 // block_size + 2,
    }
    workload = [
        Ask(64, (index + 3,) * 4, 20, index % 2 * 1.0, -(index == 4), 2, False)
        for index in range(6)
    ]
    harness = check(engine, limits, workload)
    counters = harness.scheduler.counters
    assert counters.preemptions > 0
    assert counters.prompt_tokens_hit > 0
    assert any(chunk.past and chunk.tokens > 1 for d in harness.decisions for chunk in d.chunks)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """The demo checkpoint, compiled by OpenVINO."""
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path))
    recipe = compose("demo", ("engine=openvino", "dtype=f32"), []).recipe
    session = pipeline.open_engine(pipeline.build(recipe), recipe)
    yield session
    session.close()


def test_the_demo_writes_the_same_alone_and_in_company(demo: Session) -> None:
    shared = np.random.default_rng(3).integers(300, 2000, 150).tolist()
    prompts = [[*shared[: 40 * (index % 4)], *shared[index : index + 9]] for index in range(16)]
    params = [
        SamplingParams(temperature=0.8 * (index % 2), seed=index, max_tokens=40, ignore_eos=True)
        for index in range(16)
    ]
    expected = [continue_alone(demo, *each) for each in zip(prompts, params, strict=True)]
    limits = make_limits(
        max_sequences=6,
        max_tokens_per_step=64,
        prefill_chunk=50,
        max_context=256,
        cache_blocks=12,
    )
    with EngineLoop(NotClosed(demo), limits) as loop:
        for _ in range(2):  # the second time with every prompt in the cache
            results = generate(loop, prompts, params)
            same = [e.check(r.token_ids) for e, r in zip(expected, results, strict=True)]
            assert sum(same) >= 14, "of sixteen"
        stats = loop.stats()
    assert stats.preemptions > 0
    assert stats.prompt_tokens_hit > 0
    assert stats.blocks_held == 0


class NotClosed:
    """A session that outlives its loop."""

    def __init__(self, session: Session) -> None:
        self.vocab_size = session.vocab_size
        self.block_size = session.block_size
        self.block_bytes = session.block_bytes
        self.state_bytes = session.state_bytes
        self.allocate_cache = session.allocate_cache
        self.run = session.run

    def close(self) -> None:
        pass
