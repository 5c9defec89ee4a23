"""Logits of every architecture equal those of transformers, however the tokens come in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddock.engines.protocol import Session
from paddock.graph import DType
from tests.models.expected_logits import expected, golden, live
from tests.models.opened import ENGINES, TOLERANCE, opened
from tests.models.parity_cases import CASES, CHARACTERISTIC, case
from tests.models.play import (
    Plan,
    chunks,
    decode,
    play,
    relative_error,
    step_inputs,
    together,
    whole,
)


@pytest.fixture(scope="module")
def sessions() -> Iterator[dict[tuple[str, str], Session]]:
    made: dict[tuple[str, str], Session] = {}
    yield made
    for session in made.values():
        session.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def session(engine: str, name: str, sessions: dict[tuple[str, str], Session]) -> Session:
    if (engine, name) not in sessions:
        sessions[engine, name] = opened(case(name), engine)
    return sessions[engine, name]


def test_the_golden_files_are_what_transformers_makes(name: str) -> None:
    assert relative_error(golden(name), live(name)) < 1e-5


@pytest.mark.parametrize("form", ["whole", "together", "decode", "chunks"])
def test_logits_are_those_of_transformers(
    session: Session, engine: str, name: str, form: str
) -> None:
    lengths = [len(ids) for ids in case(name).sequences]
    random = np.random.default_rng([len(form), len(name)])
    plan: Plan = {
        "whole": lambda: whole(lengths),
        "together": lambda: together(lengths),
        "decode": lambda: decode(lengths, prompt=7),
        "chunks": lambda: chunks(lengths, random),
    }[form]()
    found = play(session, case(name).sequences, plan, random)
    assert relative_error(found, expected(name)) < TOLERANCE[engine]


@pytest.mark.parametrize("name", CHARACTERISTIC, indirect=True)
def test_any_number_of_sequences_share_a_step(session: Session, engine: str, name: str) -> None:
    """Ten sequences, each some first tokens of one of the two, at ages of their own."""
    random = np.random.default_rng(len(name))
    long, short = case(name).sequences
    lengths = [int(n) for n in random.integers(1, len(short) + 1, 5)]
    lengths += [int(n) for n in random.integers(1, len(long) + 1, 5)]
    sequences = [(short if i < 5 else long)[:n] for i, n in enumerate(lengths)]
    found = play(session, sequences, chunks(lengths, random), random)
    truth = [expected(name)[0 if i >= 5 else 1][:n] for i, n in enumerate(lengths)]
    assert relative_error(found, truth) < TOLERANCE[engine]


@pytest.mark.parametrize("engine", ["reference"], indirect=True)
@pytest.mark.parametrize("name", CHARACTERISTIC, indirect=True)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5), data=st.data())
def test_logits_do_not_depend_on_the_plan(
    session: Session, engine: str, name: str, seed: int, count: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    long = case(name).sequences[0]
    lengths = data.draw(st.lists(st.integers(1, len(long)), min_size=count, max_size=count))
    sequences = [long[:n] for n in lengths]
    found = play(session, sequences, chunks(lengths, random), random)
    assert relative_error(found, [expected(name)[0][:n] for n in lengths]) < TOLERANCE[engine]


@pytest.mark.parametrize("name", CHARACTERISTIC, indirect=True)
def test_only_the_rows_asked_for_come_back_in_their_order(
    session: Session, engine: str, name: str
) -> None:
    ids = case(name).sequences[0]
    blocks = range(-(-len(ids) // session.block_size))
    session.allocate_cache(len(blocks), len(blocks))
    rows = np.array([17, 3, 3, 28, 0])
    found = session.run(step_inputs(session, [(ids, 0, blocks)], rows))
    assert found.shape == (5, session.vocab_size)
    assert found.dtype == np.float32
    assert relative_error([found], [expected(name)[0][rows]]) < TOLERANCE[engine]


@pytest.mark.parametrize("name", CHARACTERISTIC, indirect=True)
def test_f64_is_nearer_to_itself_than_f32(name: str) -> None:
    """In f64 the order of sums does not matter any more: the yardstick for other engines."""
    random = np.random.default_rng(0)
    lengths = [len(ids) for ids in case(name).sequences]
    exact = opened(case(name), "reference", dtype=DType.F64)
    first = play(exact, case(name).sequences, whole(lengths), random)
    second = play(exact, case(name).sequences, chunks(lengths, random), random)
    # The logits themselves are handed out in f32.
    assert relative_error(first, second) < 2e-7
    assert relative_error(first, expected(name)) < TOLERANCE["reference"]
