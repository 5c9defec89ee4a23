"""Plans that hold their weights, given others.

What TensorRT for RTX takes of it with no GPU is asked of itself; its Refitter, which needs one, is
a double here.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.engines.protocol import BuildError, WeightSource
from paddock.engines.tensorrt import engine, gpu
from paddock.engines.tensorrt.engine import TensorRTEngine
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import interpreted_session
from paddock.engines.tensorrt.plan import Plan
from paddock.engines.tensorrt.weights import REFITTABLE, stored
from paddock.graph import DType, QuantFormat
from tests.engines.tensorrt.networks import Model, SoiledDevice, defined, session_of
from tests.engines.tensorrt.refitter_double import Refitting, installed, readable
from tests.models.expected_logits import expected
from tests.models.play import play, relative_error, together

NO_GPU = pytest.mark.skipif(gpu.here() is not None, reason="this machine has a GPU")


def refittable(flavour: Flavour, model: Model) -> tuple[Plan, Any]:
    plan, definition = defined(flavour, model.request(), model.weights, how=REFITTABLE)
    return replace(plan, data=b"the plan"), definition


# ** TensorRT for RTX itself **


@pytest.mark.parametrize("quant", [None, QuantFormat(DType.I8), QuantFormat(DType.I4, 8)])
def test_every_weight_is_known_by_its_slots_name(flavour: Flavour, quant: QuantFormat) -> None:
    model = Model("llama", DType.F32, quant=quant)
    plan, definition = refittable(flavour, model)
    network = definition.network
    assert set(network.refittable) == set(plan.weights_by_name)
    assert all(network.raw.are_weights_marked_refittable(n) for n in network.refittable)
    assert not network.raw.are_weights_marked_refittable("model.norm.weigh")
    if quant is None:
        session = interpreted_session(plan, definition, model.weights, SoiledDevice())
        lengths = [len(ids) for ids in model.case.sequences]
        random = np.random.default_rng(0)
        found = play(session, model.case.sequences, together(lengths), random, soil=False)
        assert relative_error(found, expected("llama")) < 1e-4


@NO_GPU
def test_it_is_refused_before_the_build_where_there_is_no_gpu(flavour: Flavour) -> None:
    message = (
        r"engine\.weights=refittable: tensorrt_rtx \S+ compiles plans .* only where there is a GPU,"
        r" and this machine has no NVIDIA driver .*; engine\.weights=external, the default, feeds"
    )
    with pytest.raises(BuildError, match=message):
        Model("llama").request(weights=REFITTABLE)
    options = {"flavour": flavour.package, "target": ["sm89"], "weights": REFITTABLE}
    with pytest.raises(BuildError, match=message):
        engine.check_target([DType.F16], options)


FAILS = """
from dataclasses import replace
from paddock.engines.tensorrt import flavours
from paddock.engines.tensorrt.definition import compile_plan
from paddock.graph import DType
from tests.engines.tensorrt.test_refit import Model, refittable
model = Model("llama", DType.F16, config={"num_hidden_layers": 1})
plan, definition = refittable(flavours.find("tensorrt_rtx"), model)
compile_plan(definition, plan.targets)
"""


@NO_GPU
@pytest.mark.slow
def test_the_compiler_does_want_a_gpu(flavour: Flavour) -> None:
    """Once a release builds it without one, this fails, and the refusal may go."""
    done = subprocess.run(
        [sys.executable, "-c", FAILS],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS)" in done.stderr


# ** the calls to the Refitter **


@pytest.fixture
def refitting(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> Refitting:
    """A machine with an Ada GPU, on which TensorRT reads plans that are `readable`."""
    return installed(flavour, monkeypatch)


def joined(plan: Plan, source: WeightSource) -> bytes:
    named = sorted(plan.weights_by_name.items())
    return b"".join(stored(source, weight).tobytes() for _, weight in named)


def another(model: Model) -> Any:
    """The same slots, other numbers."""
    checkpoint = {k: (1.5 * x).astype(x.dtype) for k, x in model.case.checkpoint().items()}
    return type(model.weights)(model.module, checkpoint, model.mesh, model.dtype)


@pytest.mark.parametrize("quant", [None, QuantFormat(DType.I8), QuantFormat(DType.I4, 8)])
def test_a_refitted_plan_holds_the_new_weights(
    flavour: Flavour, refitting: Refitting, quant: QuantFormat
) -> None:
    model = Model("llama", DType.BF16, quant=quant)
    plan, _ = refittable(flavour, model)
    refitted = readable(plan).refitted(another(model)).plan
    assert refitted.data == joined(plan, another(model)) != joined(plan, model.weights)
    assert replace(refitted, data=plan.data) == plan
    assert refitting.calls[-1] == "refit"
    assert sorted(refitting.calls[:-1]) == sorted(plan.weights_by_name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"refuses": "model.norm.weight"}, r"model\.norm\.weight: TensorRT does not take the new"),
        ({"forgets": "model.bias"}, r"TensorRT also wants model\.bias; build again; engine\.weig"),
        ({"more": "model.nrm.weight"}, r"model\.nrm\.weight is a weight of the plan alone; neare"),
        ({"fails": True}, r"could not refit the plan; build again"),
    ],
)
def test_what_the_refitter_does_not_do(
    flavour: Flavour, refitting: Refitting, wrong: dict[str, Any], message: str
) -> None:
    model = Model("llama", DType.F16)
    plan, _ = refittable(flavour, model)
    vars(refitting).update(wrong)
    with pytest.raises(BuildError, match=message):
        readable(plan).refitted(another(model))


def test_other_plans_are_not_refitted(flavour: Flavour, refitting: Refitting) -> None:
    session_of(flavour, Model("llama"), embedded=True)
    plan, _ = refittable(flavour, Model("llama"))
    with pytest.raises(BuildError, match=r"built with engine\.weights=embedded, not refittable"):
        TensorRTEngine(replace(plan, weights="embedded")).refitted(Model("llama").weights)
    with pytest.raises(BuildError, match=r"GPU, NVIDIA L4, is sm89; the plan has sm80"):
        TensorRTEngine(replace(plan, targets=("sm80",))).refitted(Model("llama").weights)
    with pytest.raises(BuildError, match=r"engine\.plan: .* cannot read it; build again"):
        TensorRTEngine(replace(plan, data=b"")).refitted(Model("llama").weights)
