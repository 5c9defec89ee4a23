"""Networks of several ranks compute together what transformers computes alone."""

from __future__ import annotations

import numpy as np
import pytest

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.definition import compile_plan
from paddock.engines.tensorrt.flavours import Flavour
from paddock.graph import DType, Mesh
from tests.engines.tensorrt.networks import Model, defined, played, session_of, tolerance
from tests.engines.tensorrt.ranks import RanksSession, StagesSession
from tests.models.expected_logits import expected
from tests.models.parity_cases import CHARACTERISTIC, case
from tests.models.play import chunks, relative_error


def of_case(flavour: Flavour, name: str, mesh: tuple[int, int]) -> RanksSession | StagesSession:
    tp, pp = mesh
    if pp == 1:
        return RanksSession(
            lambda rank, collective: session_of(
                flavour, Model(name, mesh=Mesh(tp=tp, tp_rank=rank)), collective=collective
            ),
            tp,
        )
    return StagesSession(
        lambda stage, link: session_of(
            flavour, Model(name, mesh=Mesh(pp=pp, pp_rank=stage)), link=link
        ),
        pp,
    )


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2)], ids=["tp", "pp"])
@pytest.mark.parametrize("name", CHARACTERISTIC)
def test_two_ranks_agree_with_transformers(
    flavour: Flavour, name: str, mesh: tuple[int, int]
) -> None:
    session = of_case(flavour, name, mesh)
    random = np.random.default_rng(len(name))
    sequences = case(name).sequences
    steps = chunks([len(ids) for ids in sequences], random)
    try:
        found = played(session, sequences, steps, random)
    finally:
        session.close()
    layers = int(case(name).config["num_hidden_layers"])
    assert relative_error(found, expected(name)) < tolerance(DType.F32, layers)
    if isinstance(session, RanksSession):
        of_one, of_other = session.meeting.calls
        assert of_one == of_other
        assert set(of_one) == {"ALL_REDUCE", "ALL_GATHER"}


def test_collectives_compile_without_nccl(flavour: Flavour) -> None:
    model = Model("llama-biases", DType.BF16, mesh=Mesh(tp=2, tp_rank=1))
    request = model.request(target=["sm80", "sm89", "sm120"])
    _, definition = defined(flavour, request)
    assert compile_plan(definition, request.targets)


@pytest.mark.parametrize("stage", [0, 1])
def test_pipeline_stages_are_plans_of_their_own(flavour: Flavour, stage: int) -> None:
    """What a stage receives is fed to it, and what it sends comes out of it."""
    model = Model("llama", DType.F16, mesh=Mesh(pp=2, pp_rank=stage))
    request = model.request(target=["sm80", "sm89"])
    plan, definition = defined(flavour, request)
    assert compile_plan(definition, request.targets)
    received = [i.dims for i in plan.inputs if i.kind == "received"]
    assert received == ([("flat_tokens", 64)] if stage else [])
    assert ("sent" in plan.outputs) == (stage == 0)
    assert ("logits" in plan.outputs) == (stage == 1)


def test_a_collective_needs_to_know_its_ranks(flavour: Flavour) -> None:
    model = Model("llama", mesh=Mesh(tp=2))
    with pytest.raises(BuildError, match=r"self_attn\.o_proj \(.*all_reduce among one rank"):
        defined(flavour, model.request(ranks=1))
