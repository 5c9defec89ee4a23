"""Other weights for a built engine: as if they had been built, and nothing compiled again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddock.__main__ import main
from paddock.engines import openvino
from paddock.engines.protocol import BuildError, WeightSource
from paddock.engines.tensorrt import engine as tensorrt_engine
from paddock.engines.tensorrt import flavours, gpu
from paddock.engines.tensorrt.gpu import Gpu
from paddock.engines.tensorrt.plan import Plan
from paddock.engines.tensorrt.subprocess_build import Request
from paddock.engines.tensorrt.weights import nbytes
from paddock.recipes import pipeline
from paddock.recipes.build_cache import BuildCache
from paddock.recipes.compose import compose
from paddock.recipes.errors import RecipeError
from paddock.recipes.shelf import Entry
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.weights.errors import WeightError
from tests.engines.tensorrt.networks import defined
from tests.engines.tensorrt.refitter_double import ADA, installed, readable

Copy = Callable[..., Path]
RTX = pytest.mark.skipif(
    "tensorrt_rtx" not in flavours.installed(),
    reason="tensorrt_rtx is not installed (`make tensorrt` installs it)",
)
GREEDY = SamplingParams(max_tokens=16, temperature=0.0)


def built(*overrides: str) -> pipeline.BuiltEngine:
    return pipeline.build(compose("demo", overrides).recipe)


def text(*overrides: str) -> str:
    running = pipeline.start(compose("demo", overrides).recipe)
    try:
        return running.loop.submit("The ls command", GREEDY).result().sequences[0].text
    finally:
        running.close()


def donor(engine: pipeline.BuiltEngine) -> Entry:
    return BuildCache().named(engine.folder.name)


@pytest.fixture
def other(copy_of_demo: Copy) -> Path:
    """The demo as somebody trained it further: every matrix a little different."""
    folder = copy_of_demo("further")
    file = folder / "model.safetensors"
    random = np.random.default_rng(7)
    tensors = load_file(file)
    changed = {
        name: (x * (1 + 0.3 * random.standard_normal(x.shape))).astype(x.dtype)
        for name, x in tensors.items()
    }
    save_file(changed, file)
    return folder


@pytest.mark.parametrize("overrides", [(), ("quant=int8",)])
def test_it_writes_what_a_build_of_the_new_weights_writes(
    home: Path,
    other: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    first = built(*overrides)
    before = text(*overrides)
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "build", _forbidden)
        refitted = pipeline.refit(donor(first), str(other))
        assert not refitted.cached
        assert refitted.reasons == [f"refitted from {first.folder.name}"]
        assert refitted.manifest["check"]["layers"] == 6
        after = text(*overrides, f"checkpoint={other}")  # found, or it would have been built
    assert built(*overrides).cached, "the donor is as it was"
    assert text(*overrides) == before != after

    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path / "anew"))
    assert text(*overrides, f"checkpoint={other}") == after


def _forbidden(*_: Any) -> Any:
    raise AssertionError("nothing is lowered")


def test_the_second_time_it_is_there(home: Path, other: Path) -> None:
    first = donor(built())
    pipeline.refit(first, str(other))
    assert pipeline.refit(first, str(other)).cached


def test_other_sizes_are_named_before_anything_is_read(
    home: Path, copy_of_demo: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = donor(built())
    smaller = copy_of_demo("smaller", num_hidden_layers=4)
    before = {f for f in home.rglob("*") if f.is_file()}
    monkeypatch.setattr("paddock.recipes.builder.write", _forbidden)
    with pytest.raises(BuildError, match=r"num_hidden_layers: was 6, now 4; build it instead: pad"):
        pipeline.refit(first, str(smaller))
    assert {f for f in home.rglob("*") if f.is_file()} == before


def test_weights_that_do_not_bind_leave_nothing(home: Path, other: Path) -> None:
    first = donor(built())
    file = other / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, file)
    engines = set((home / "engines").iterdir())
    with pytest.raises(WeightError, match=r"model\.layers\.3\.mlp\.up_proj\.weight"):
        pipeline.refit(first, str(other))
    assert set((home / "engines").iterdir()) == engines


def test_an_engine_of_another_release_is_built_again(
    home: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = donor(built())
    monkeypatch.setattr(openvino, "version", lambda: "openvino 2099.1")
    with pytest.raises(BuildError, match=r"differs in more than its weights: engine: was openvino"):
        pipeline.refit(first, str(other))


def test_engines_are_named_by_folder_by_name_and_by_key(home: Path) -> None:
    first = built()
    cache = BuildCache()
    key = first.manifest["key"]
    for name in (str(first.folder), first.folder.name, key):
        assert cache.named(name).folder == first.folder
    with pytest.raises(RecipeError, match=r"no engine 'demo-.*x' is in .*; nearest is 'demo-"):
        cache.named(first.folder.name[:-1] + "x")
    (first.folder / "rank-0" / "graph.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"the engine is damaged: .*graph\.json.*build it again"):
        cache.named(key)


def test_the_command(home: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = built()
    assert main(["refit", first.folder.name, "--checkpoint", str(other), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["cached"] is False
    assert Path(said["folder"]).parent == first.folder.parent
    assert main(["refit", first.folder.name]) == 2
    assert "expected paddock refit ENGINE --checkpoint" in capsys.readouterr().err
    assert main(["refit", "demo-none", "--checkpoint", str(other)]) == 1


@RTX
def test_a_plan_is_taken_as_it_is_unless_it_holds_its_weights(home: Path, other: Path) -> None:
    rtx = ("engine=tensorrt", "engine.flavour=tensorrt_rtx", "engine.target=[sm89]")
    first = built(*rtx)
    refitted = pipeline.refit(donor(first), str(other))
    assert "compile" not in refitted.timings
    plan = (first.folder / "rank-0" / "engine.plan").read_bytes()
    assert (refitted.folder / "rank-0" / "engine.plan").read_bytes() == plan
    assert 0 < refitted.manifest["check"]["error"] < 1e-5
    embedded = built(*rtx, "engine.weights=embedded")
    with pytest.raises(BuildError, match=r"constants of the plan \(engine\.weights=embedded\)"):
        pipeline.refit(donor(embedded), str(other))


@RTX
def test_a_plan_that_holds_its_weights_is_given_others(
    home: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With doubles of a GPU, and of TensorRT's compiler, runtime and Refitter."""
    flavour = flavours.find("tensorrt_rtx")
    installed(flavour, monkeypatch)

    def compiled(request: Request, weights: WeightSource, progress: Any) -> Plan:
        plan, _ = defined(flavour, request, weights, how=request.weights)
        return readable(replace(plan, data=b"compiled")).plan

    monkeypatch.setattr(tensorrt_engine, "compile_in_subprocess", compiled)
    overrides = ("engine=tensorrt", "engine.weights=refittable", "verify=false")
    first = built(*overrides)
    refitted = pipeline.refit(donor(first), str(other))
    assert refitted.reasons == [f"refitted from {first.folder.name}"]
    assert built(*overrides, f"checkpoint={other}").cached
    held = Plan.load(refitted.folder / "rank-0")
    slots = load_file(other / "model.safetensors")
    assert slots["model.norm.weight"].astype(np.float32).tobytes() in held.data
    assert len(held.data) == sum(nbytes(w) for w in held.weights_by_name.values())
    assert Plan.load(first.folder / "rank-0").data == b"compiled"

    ampere = replace(ADA, gpus=(Gpu("NVIDIA A10", "sm86"),))
    monkeypatch.setattr(gpu, "driver", lambda: ampere)
    bound = list((home / "weights").iterdir())
    with pytest.raises(BuildError, match=r"cannot be given other weights here: .* is sm86; the"):
        pipeline.refit(donor(first), "paddock/demo")
    assert list((home / "weights").iterdir()) == bound
