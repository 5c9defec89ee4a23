"""quant=fp8: weights in e4m3 with a scale a row, from the recipe to the engines that take them."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt import flavours
from paddock.recipes import pipeline
from paddock.recipes.compose import compose
from paddock.recipes.errors import RecipeError

RTX = ("engine=tensorrt", "engine.flavour=tensorrt_rtx", "quant=fp8")
NEEDS_RTX = pytest.mark.skipif(
    "tensorrt_rtx" not in flavours.installed(),
    reason="tensorrt_rtx is not installed (`make tensorrt` installs it)",
)


def built(*overrides: str) -> pipeline.BuiltEngine:
    return pipeline.build(compose("demo", overrides).recipe)


@NEEDS_RTX
def test_tensorrt_is_fed_e4m3(home: Path) -> None:
    """The build's check evaluates TensorRT's network over the bound weights."""
    engine = built(*RTX, "dtype=bf16", "engine.target=[sm89]")
    assert 0 < engine.manifest["check"]["error"] < 0.05
    (file,) = (home / "weights").rglob("*.safetensors")
    with safe_open(file, "np") as opened:
        name = "model.layers.0.self_attn.o_proj"
        matrix, scale = (opened.get_slice(f"{name}.{part}") for part in ("weight", "scale"))
        assert (matrix.get_dtype(), scale.get_dtype()) == ("F8_E4M3", "F32")
        assert scale.get_shape() == [matrix.get_shape()[0], 1]


@NEEDS_RTX
@pytest.mark.parametrize("target", ["sm75", "sm80", "sm86"])
def test_targets_without_e4m3_are_refused_by_name(home: Path, target: str) -> None:
    with pytest.raises(BuildError, match=rf"engine\.target: {target} .* no arithmetic for f8e4m3"):
        built(*RTX, "dtype=f16", f"engine.target=[{target}]")
    assert not (home / "weights").exists()


def test_engines_that_have_no_e4m3_say_so(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"quant\.weights: engine 'openvino' does not run fp8"):
        built("engine=openvino", "quant=fp8")
    with pytest.raises(RecipeError, match=r"fp8 has one scale a row; leave out quant\.group"):
        built("quant=fp8", "quant.group=32")
