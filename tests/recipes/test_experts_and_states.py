"""Models that route tokens to experts or keep a state, built as a recipe builds and run in batches.

What a build is checked against must see a wrong engine, and must not refuse a right one for the
few tokens that rounding sends to other experts.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.engines.openvino import recurrent
from paddock.engines.protocol import BuildError, Session
from paddock.graph import DType
from paddock.layers import trace
from paddock.models import registry
from paddock.recipes import verify
from paddock.recipes.pipeline import build, open_engine
from paddock.recipes.schema import Recipe
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.sampling.sampling_params import SamplingParams
from tests.models.drawn_families import FAMILIES
from tests.runtime.harness import make_limits
from tests.runtime.test_batch_independence import NotClosed, continue_alone

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
NAMES = ("MixtralForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM", "Qwen3NextForCausalLM")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.models.published import publish

    assert set(NAMES) <= set(FAMILIES)
    made = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in made.items():
        publish(name, 2, folder, divisible=True)
    return made


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path))


def recipe(folder: Path, **settings: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "checkpoint": str(folder), **settings})


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_build_is_checked_and_right(name: str, dtype: str, checkpoints: dict[str, Path]) -> None:
    check = build(recipe(checkpoints[name], dtype=dtype)).manifest["check"]
    assert check["layers"] > 0
    # States are kept in f32 whatever the type of weights, and what computes them is exact, too.
    exact = dtype == "f32" or name != "MixtralForCausalLM"
    assert check["error"] < (1e-5 if exact else 0.05)


def test_experts_in_another_order_are_seen(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paddock.engines.openvino import lowering
    from paddock.engines.openvino.experts import Order, ordered

    def disordered(*given: Any) -> Order:
        order = ordered(*given)
        return Order(order.chosen, order.pairs, order.pairs, order.ends, order.expert, order.held)

    monkeypatch.setattr(lowering, "ordered", disordered)
    with pytest.raises(BuildError, match="does not compute what the model says"):
        build(recipe(checkpoints["MixtralForCausalLM"], dtype="bf16"))


def test_states_that_are_not_written_are_seen(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "_NEVER", 0)
    with pytest.raises(BuildError, match="does not compute what the model says"):
        build(recipe(checkpoints["Mamba2ForCausalLM"], dtype="f32"))


def test_a_few_rows_may_be_routed_otherwise(checkpoints: dict[str, Path]) -> None:
    rows = np.full(20, 0.01)
    rows[3] = 0.9
    # One row does not make the others' allowance larger.
    assert verify.allowed(rows, routed=True)[0] == pytest.approx(0.03)
    assert verify.allowed(rows)[0] == verify.LARGEST
    for name, routed in (("MixtralForCausalLM", True), ("Mamba2ForCausalLM", False)):
        config = json.loads((checkpoints[name] / "config.json").read_text())
        asked = verify.Asked.of(trace(registry.read(config).build(), max_context=8), None)
        assert asked.routed == routed
        assert not asked.whole  # its steps continue one another, with or without a cache of keys


@pytest.mark.parametrize("name", ["Mamba2ForCausalLM", "Qwen3NextForCausalLM"])
def test_text_does_not_depend_on_who_shares_the_batch(
    name: str, checkpoints: dict[str, Path]
) -> None:
    """In chunks, among others, preempted and begun again: the states are the sequence's own."""
    made = recipe(checkpoints[name], dtype="f32", limits={"max_context": 64})
    session: Session = open_engine(build(made), made)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 96, n).tolist() for n in (14, 20, 29, 17, 28, 23)]
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    alone = [continue_alone(session, prompt, params) for prompt in prompts]
    limits = make_limits(
        max_sequences=3,
        max_tokens_per_step=40,
        prefill_chunk=17,
        max_context=64,
        cache_blocks=5,  # all three need a second one
    )
    try:
        with EngineLoop(NotClosed(session), limits) as loop:
            handles = [loop.submit(prompt, params) for prompt in prompts]
            texts = [handle.result(timeout_s=60).sequences[0].token_ids for handle in handles]
            assert loop.stats().preemptions > 0
            assert loop.stats().prompt_tokens_hit == 0
    finally:
        session.close()
    same = [a.check(text) for a, text in zip(alone, texts, strict=True)]
    assert sum(same) >= len(same) - 1


def test_bf16_keeps_its_states_in_f32(checkpoints: dict[str, Path]) -> None:
    found = {}
    for dtype in ("f32", "bf16"):
        made = recipe(checkpoints["Mamba2ForCausalLM"], dtype=dtype)
        session = open_engine(build(made), made)
        found[DType(dtype)] = session.state_bytes
        session.close()
    assert found[DType.F32] == found[DType.BF16] > 0
