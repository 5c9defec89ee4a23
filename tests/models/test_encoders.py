"""Encoders' hidden states, labels and scores equal those of transformers."""

from __future__ import annotations

import importlib.util

import pytest

from paddock.layers import trace
from paddock.models import registry
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.encoder_cases import NAMES, EncoderCase
from tests.models.encoder_steps import made, run
from tests.models.opened import ENGINES, OPTIONS, TOLERANCE, engine_kind
from tests.models.play import relative_error
from tests.models.threads_as_ranks import MeshSession

LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
pytestmark = pytest.mark.skipif(
    not LIVE, reason="torch and transformers are not installed (`make parity` installs them)"
)


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
