"""Plans that this machine cannot run, and folders that are no plans: what is said of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt import engine, flavours, gpu, runtime
from paddock.engines.tensorrt.definition import compile_plan
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.gpu import Driver, Gpu
from paddock.engines.tensorrt.interpreted import HostDevice
from paddock.engines.tensorrt.plan import GRAPH, NETWORK, PLAN, Plan
from paddock.engines.tensorrt.subprocess_build import compile_in_subprocess
from paddock.graph import DType
from tests.engines.tensorrt.networks import Model, defined

ADA = Driver((13, 0), (Gpu("NVIDIA L4", "sm89"),), "")


@pytest.fixture(scope="module")
def plan(flavour: Flavour) -> Plan:
    model = Model("llama", DType.F16, config={"num_hidden_layers": 1})
    planned, definition = defined(flavour, model.request())
    return replace(planned, data=compile_plan(definition, planned.targets))


def on(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(gpu, "driver", lambda: driver)


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (
            Driver((0, 0), (), "this machine has no NVIDIA driver (libcuda.so.1)"),
            r"no NVIDIA driver .* was built for sm89 and runs on .* Here, choose engine=openvino",
        ),
        (replace(ADA, version=(11, 8)), r"driver runs CUDA 11\.8, TensorRT needs 12\.0: update"),
        (
            Driver((13, 0), (Gpu("NVIDIA H200", "sm90"),), ""),
            r"GPU, NVIDIA H200, is sm90; the plan has sm89: build it again with engine\.target",
        ),
    ],
    ids=["no driver", "old driver", "another GPU"],
)
def test_a_machine_that_cannot_run_it(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, driver: Driver, message: str
) -> None:
    on(monkeypatch, driver)
    with pytest.raises(BuildError, match=f"this engine cannot run here: .*{message}"):
        engine.TensorRTEngine(plan).open(Model("llama").weights, {})


def test_a_machine_that_can(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, ADA)
    assert runtime.why_not(plan) is None


def test_a_plan_of_another_version(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, ADA)
    reason = runtime.why_not(replace(plan, version="1.6.0"))
    assert reason is not None
    assert reason.startswith("the plan was built by tensorrt_rtx 1.6.0, installed is ")
    assert reason.endswith("(paddock build NAME engine=tensorrt --rebuild)")


def test_a_plan_of_a_package_that_is_not_here(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "installed", lambda: ["tensorrt_rtx"])
    reason = runtime.why_not(replace(plan, package="tensorrt"))
    assert reason == (
        "the plan is one of tensorrt, which is not installed: pip install 'paddock[tensorrt]'"
    )


@pytest.mark.skipif(gpu.here() is not None, reason="this machine has a GPU that may read it")
@pytest.mark.parametrize("damage", [lambda b: b[:1000], lambda b: b"\0" * len(b), lambda b: b""])
def test_a_plan_that_tensorrt_does_not_read(
    flavour: Flavour,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
) -> None:
    """TensorRT's own deserializer, which reads none without a GPU; what it says is passed on."""
    on(monkeypatch, ADA)
    monkeypatch.setattr(runtime, "CupyDevice", HostDevice)
    with pytest.raises(BuildError, match=rf"engine\.plan: {flavour.label} cannot read it; build"):
        runtime.open_on_gpu(replace(plan, data=damage(plan.data)), Model("llama").weights)


def changed(file: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / file).read_text("utf-8"))
        told.update(fields)
        (folder / file).write_text(json.dumps(told), "utf-8")

    return change


def without(key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / NETWORK).read_text("utf-8"))
        del told[key]
        (folder / NETWORK).write_text(json.dumps(told), "utf-8")

    return change


def truncated(folder: Path) -> None:
    data = (folder / PLAN).read_bytes()
    (folder / PLAN).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, r"engine\.plan: \d+ bytes, \d+ were written; build the engine again"),
        (lambda f: (f / PLAN).unlink(), r"is damaged \(.*engine\.plan.*; build the engine again"),
        (lambda f: (f / NETWORK).write_text("{"), r"is damaged .*; build the engine again"),
        (lambda f: (f / GRAPH).write_text("[]"), r"is damaged .*; build the engine again"),
        (changed(NETWORK, schema=99), r"network\.json: schema 99, this Paddock has 1; build"),
        (without("bounds"), r"is damaged \(has no 'bounds'\); build the engine again"),
        (changed(NETWORK, bounds={"max_context": 1}), r"is damaged .*max_sequences.*; build"),
        (changed(NETWORK, inputs=[{"name": 1}]), r"is damaged \(has no 'kind'\); build the engine"),
        (changed(NETWORK, targets=7), r"is damaged .*; build the engine again"),
    ],
)
def test_a_damaged_folder(
    plan: Plan, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    plan.save(tmp_path)
    assert Plan.load(tmp_path).data == plan.data
    damage(tmp_path)
    with pytest.raises(BuildError, match=message):
        Plan.load(tmp_path)


def test_weights_of_another_model_are_not_bound(flavour: Flavour, plan: Plan) -> None:
    other = Model("llama", DType.F16, config={"num_hidden_layers": 1, "intermediate_size": 48})
    with pytest.raises(
        BuildError,
        match=r"gate_up_proj\.weight: the engine expects f16\[80, 64\], the bound weights\s+hold"
        r" float16\[96, 64\]; build the engine again",
    ):
        engine.TensorRTEngine(plan).open_interpreted(other.weights)


def test_no_cupy_is_named_with_its_extra(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    on(monkeypatch, ADA)
    with pytest.raises(BuildError, match=r"runs through CuPy, which cannot be loaded .*paddock\[r"):
        runtime.open_on_gpu(plan, Model("llama").weights)


def headed(size: int, dtype: DType) -> Model:
    return Model("llama", dtype, config={"num_hidden_layers": 1, "head_dim": size})


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_heads_that_the_compiler_fails_on(flavour: Flavour, dtype: DType) -> None:
    with pytest.raises(
        BuildError,
        match=rf"self_attn.*: heads of 12 numbers; .* in {dtype} for multiples of 8; use dtype=f32",
    ):
        headed(12, dtype).request()
    for size in (4, 8, 24):
        headed(size, dtype).request()
    headed(12, DType.F32).request()


def test_the_compiler_does_fail_on_them(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a release takes them, this fails, and the refusal may go."""
    monkeypatch.setattr(engine, "_check_heads", lambda graph: None)
    with pytest.raises(
        BuildError, match=r"Myelin .*CHECK\(op->input_layouts\(\)\.size\(\) > idx\)"
    ):
        compile_in_subprocess(headed(12, DType.F16).request(), None, None)
    monkeypatch.undo()
    for size in (4, 24):
        assert compile_in_subprocess(headed(size, DType.F16).request(), None, None).data
