"""Encoders' hidden states, labels and scores equal those of transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from paddock.engines.protocol import Session, StepInputs
from paddock.graph import Array
from paddock.layers import trace
from paddock.models import registry
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.encoder_cases import NAMES, EncoderCase
from tests.models.opened import ENGINES, OPTIONS, TOLERANCE, engine_kind
from tests.models.play import relative_error
from tests.models.threads_as_ranks import MeshSession

LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
pytestmark = pytest.mark.skipif(
    not LIVE, reason="torch and transformers are not installed (`make parity` installs them)"
)


@cache
def made(name: str) -> tuple[Path, list[Array]]:
    """The case's checkpoint, and what transformers makes of it."""
    from tests.models.transformers_encoder import outputs, reference, save

    case = EncoderCase(name)
    model = reference(case)
    folder = Path(mkdtemp(prefix="encoder-"))
    save(case, model, folder)
    return folder, outputs(case, model)


def whole_step(case: EncoderCase, order: Sequence[int], reads: str) -> StepInputs:
    """The case's sequences, in `order`, as one step; `reads`: which rows come back."""
    sequences = [case.sequences[i] for i in order]
    lengths = [len(ids) for ids in sequences]
    starts = np.cumsum([0, *lengths])
    rows = starts[:-1] if reads == "first" else np.arange(starts[-1])
    empty = np.zeros(len(order) + 1, np.int32)
    return StepInputs(
        token_ids=np.concatenate(sequences),
        positions=np.concatenate([np.arange(n) for n in lengths]).astype(np.int64),
        sequence_starts=starts.astype(np.int32),
        past_lengths=empty[1:],
        block_table=empty[:0],
        block_starts=empty,
        sequence_slots=np.arange(len(order), dtype=np.int32),
        logit_rows=rows.astype(np.int64),
        token_types=np.concatenate([case.token_types[i] for i in order]),
    )


def run(session: Session, case: EncoderCase, order: Sequence[int], reads: str) -> list[Array]:
    """Rows of each sequence, in the order of `order`."""
    step = whole_step(case, order, reads)
    rows = np.array(session.run(step))
    if reads == "first":
        return list(rows[:, None])
    return np.split(rows, step.sequence_starts[1:-1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_transformers(name: str, engine: str) -> None:
    """All in one step, in any order, and each alone."""
    case = EncoderCase(name)
    folder, expected = made(name)
    architecture = registry.read(case.config)
    model = architecture.build()
    graph = trace(model, max_context=len(case.sequences[0]))
    weights = BoundCheckpoint(architecture, model, folder)
    session = engine_kind(engine).build(graph, OPTIONS[engine]).open(weights, OPTIONS[engine])
    reads = architecture.reads if architecture.task == "classify" else "all"
    try:
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1, 2], [0], [1], [2]):
            found = run(session, case, order, reads)
            assert relative_error(found, [expected[i] for i in order]) < TOLERANCE[engine]
    finally:
        session.close()


@pytest.mark.parametrize("mesh", ["tp", "pp", "both"])
@pytest.mark.parametrize("name", [n for n in NAMES if "SequenceClassification" in n])
def test_ranks_agree_with_transformers(name: str, mesh: str) -> None:
    """A rank for each head, a stage for each layer."""
    case = EncoderCase(name)
    folder, expected = made(name)
    architecture = registry.read(case.config)
    sizes = case.sizes
    session = MeshSession(
        architecture,
        {},
        tp=1 if mesh == "pp" else sizes.heads,
        pp=1 if mesh == "tp" else sizes.layers,
        max_context=64,
        bind=lambda model, rank: BoundCheckpoint(architecture, model, folder, rank),
    )
    try:
        found = run(session, case, [3, 0, 2], architecture.reads)
    finally:
        session.close()
    assert relative_error(found, [expected[i] for i in (3, 0, 2)]) < 2e-5
