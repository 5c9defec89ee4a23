"""The demo, built by NVIDIA's compiler in a process of its own, and checked without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt import flavours, gpu
from paddock.recipes import pipeline
from paddock.recipes.compose import compose
from paddock.recipes.errors import RecipeError

pytestmark = pytest.mark.skipif(
    "tensorrt_rtx" not in flavours.installed(),
    reason="tensorrt_rtx is not installed (`make tensorrt` installs it)",
)
TARGETS = "engine.target=[sm80,sm89,sm120]"


def build(*overrides: str, **options: Any) -> pipeline.BuiltEngine:
    recipe = compose("demo", ["engine=tensorrt", "engine.flavour=tensorrt_rtx", *overrides]).recipe
    return pipeline.build(recipe, **options)


def test_the_demo_is_compiled_checked_and_found_again(home: Path, notes: Any) -> None:
    built = build(TARGETS, progress=notes)
    assert not built.cached
    check = built.manifest["check"]
    assert check["layers"] == 6
    assert 0 < check["error"] < 1e-5
    assert notes.stages["compile"] == (1, 1)
    files = {f.name for f in (built.folder / "rank-0").iterdir()}
    assert files == {"engine.plan", "network.json", "graph.json", "build.log"}
    assert build(TARGETS).cached
    assert "it cannot run here" in notes.text or gpu.here()

    other = build("engine.target=[sm89]")
    assert not other.cached
    assert other.reasons == ["target: was sm80 sm89 sm120, now sm89"]
    assert other.weights_folder == built.weights_folder
    assert build("engine.target=[sm89]", "limits.max_sequences=2").reasons[0].startswith("limits: ")


@pytest.mark.parametrize(
    "overrides",
    [
        ("dtype=f16", "quant=int8"),
        ("dtype=bf16", "quant=int4"),
        ("dtype=bf16", "engine.weights=embedded"),
        ("dtype=f16", "quant=int4", "engine.weights=embedded"),
    ],
)
def test_every_form_of_the_demo_is_checked(shared_home: Path, overrides: tuple[str, ...]) -> None:
    built = build(TARGETS, *overrides)
    assert built.manifest["check"]["layers"] == 6
    assert 0 < built.manifest["check"]["share"] < 1


@pytest.mark.skipif(gpu.here() is not None, reason="this machine has a GPU")
def test_running_without_a_gpu_says_what_there_is_instead(shared_home: Path) -> None:
    recipe = compose("demo", ["engine=tensorrt", TARGETS]).recipe
    with pytest.raises(
        BuildError, match=r"cannot run here: .*built for sm80, sm89, sm120.*openvino"
    ):
        pipeline.start(recipe)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dtype=bf16", "engine.target=[sm75]"], r"sm75 .* no arithmetic for bf16.*dtype=f16"),
        (["quant=int4", "dtype=f16", "engine.target=[sm75]"], r"sm75 .* for i4"),
        (["engine.target=[sm99]"], r"has no 'sm99'"),
    ],
)
def test_refusals_come_before_the_build(home: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        build(*overrides)
    assert not list(home.glob("engines/*"))


def test_settings_of_one_engine_are_no_others() -> None:
    with pytest.raises(RecipeError, match=r"engine\.target: engine openvino has no such setting"):
        compose("demo", ["engine.target=[sm80]"])
