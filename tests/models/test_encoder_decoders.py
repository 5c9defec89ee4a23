"""Encoder-decoders' logits and greedy answers equal those of transformers."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from paddock.engines.protocol import Session
from paddock.graph import GraphError, Mesh
from paddock.layers import trace
from paddock.models import registry
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.errors import RequestError, RequestTooLarge
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.encoder_decoder_cases import CONTEXT, NAMES, EncoderDecoderCase
from tests.models.encoder_decoder_steps import made, play
from tests.models.opened import ENGINES, OPTIONS, TOLERANCE, engine_kind
from tests.models.play import chunks, decode, relative_error, whole
from tests.models.threads_as_ranks import MeshSession

LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
pytestmark = pytest.mark.skipif(
    not LIVE, reason="torch and transformers are not installed (`make parity` installs them)"
)


def opened(name: str, engine: str) -> Session:
    architecture = registry.read(EncoderDecoderCase(name).config)
    model = architecture.build()
    weights = BoundCheckpoint(architecture, model, made(name)[0])
    graph = trace(model, max_context=CONTEXT)
    return engine_kind(engine).build(graph, OPTIONS[engine]).open(weights, OPTIONS[engine])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str, engine: str) -> None:
    """Whole, token by token, and in chunks of any size beside sequences of other ages."""
    case = EncoderDecoderCase(name)
    *_, expected = made(name)
    lengths = [len(ids) for ids in case.answers]
    session = opened(name, engine)
    try:
        for plan in (
            whole(lengths),
            decode(lengths, 2),
            chunks(lengths, np.random.default_rng(len(name))),
        ):
            assert relative_error(play(session, case, plan), expected) < TOLERANCE[engine]
    finally:
        session.close()


@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree_with_transformers(name: str) -> None:
    """A rank for each head."""
    case = EncoderDecoderCase(name)
    folder, _, expected = made(name)
    architecture = registry.read(case.config)
    session = MeshSession(
        architecture,
        {},
        tp=case.heads,
        pp=1,
        max_context=CONTEXT,
        bind=lambda model, rank: BoundCheckpoint(architecture, model, folder, rank),
    )
    try:
        found = play(session, case, decode([len(ids) for ids in case.answers], 4))
    finally:
        session.close()
    assert relative_error(found, expected) < 2e-5


def test_stages_are_refused() -> None:
    model = registry.read(EncoderDecoderCase(NAMES[0]).config).build()
    with pytest.raises(GraphError, match=r"not divided over pipeline stages, and pp is 2"):
        trace(model, max_context=CONTEXT, mesh=Mesh(pp=2))


@pytest.mark.parametrize(
    ("name", "blocks", "engine"),
    [
        *(("t5/1", blocks, engine) for blocks in (200, 20) for engine in ENGINES),
        *(
            (name, 200, "openvino")
            for name in NAMES
            if name.endswith("/1") and name[:2] not in ("t5", "wh")
        ),
    ],
)
def test_greedy_answers_are_those_of_generate(name: str, blocks: int, engine: str) -> None:
    """Eight requests of different lengths and ages in one loop; with few blocks some of them are
    preempted and begin again, their source with them."""
    from tests.models.transformers_encoder_decoder import greedy

    case, model = EncoderDecoderCase(name), made(name)[1]
    random = case.random("loop")
    sources = [
        random.randint(4, case.config["vocab_size"], n) for n in (40, 3, 17, 5, 33, 1, 9, 24)
    ]
    counts = [int(n) for n in random.randint(4, 24, len(sources))]
    expected = [greedy(case, model, s, n) for s, n in zip(sources, counts, strict=True)]
    session = opened(name, engine)
    with EngineLoop(
        session, _limits(blocks), answer_begins=[case.config["decoder_start_token_id"]]
    ) as loop:
        handles = [
            loop.submit(
                source.tolist(),
                SamplingParams(
                    max_tokens=n, temperature=0.0, stop_token_ids=(case.config["eos_token_id"],)
                ),
            )
            for source, n in zip(sources, counts, strict=True)
        ]
        results = [handle.result() for handle in handles]
        stats = loop.stats()
    assert [list(result.token_ids) for result in results] == expected
    assert [len(result.prompt_token_ids) for result in results] == [len(s) for s in sources]
    assert stats.prompt_tokens_hit == 0
    assert stats.blocks_held == 0
    if engine == "reference":  # whose blocks hold four tokens, others' thirty-two
        assert (stats.preemptions > 0) == (blocks == 20)


def test_a_source_that_is_too_long_is_refused() -> None:
    with EngineLoop(opened(NAMES[0], "reference"), _limits(9), answer_begins=[0]) as loop:
        with pytest.raises(RequestTooLarge, match=r"65 tokens, the encoder reads 32 at most"):
            loop.submit([5] * 65)
        with pytest.raises(RequestError, match=r"the prompt is empty"):
            loop.submit([])
        with pytest.raises(RequestError, match=r"prompt_logprobs"):
            loop.submit([5], SamplingParams(prompt_logprobs=1))


def _limits(blocks: int) -> Limits:
    return Limits(
        max_sequences=4,
        max_tokens_per_step=32,
        max_context=CONTEXT,
        cache_blocks=blocks,
        max_queued_requests=100,
        max_queued_tokens=10_000,
    )
