"""What a build is said to take, beside what it took. Times are compared in benchmarks/ only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddock.__main__ import main
from paddock.engines.tensorrt import flavours
from paddock.recipes import pipeline
from paddock.recipes.compose import compose

WITHIN = 0.3
RTX = ("engine=tensorrt", "engine.flavour=tensorrt_rtx")
needs_compiler = pytest.mark.skipif(
    "tensorrt_rtx" not in flavours.installed(),
    reason="tensorrt_rtx is not installed (`make tensorrt` installs it)",
)


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize(
    "overrides",
    [
        ("dtype=f32",),
        ("dtype=bf16",),
        ("quant=int8",),
        ("quant=int4",),
        ("mesh.tp=2",),
        ("engine=reference",),
        pytest.param((*RTX, "dtype=f32"), marks=needs_compiler),
        pytest.param((*RTX, "dtype=bf16", "engine.target=[sm80,sm120]"), marks=needs_compiler),
        pytest.param((*RTX, "dtype=f16", "quant=int8"), marks=needs_compiler),
        pytest.param((*RTX, "dtype=bf16", "engine.weights=embedded"), marks=needs_compiler),
    ],
    ids=" ".join,
)
def test_disk_is_what_was_said(home: Path, overrides: tuple[str, ...]) -> None:
    recipe = compose("demo", overrides).recipe
    said = pipeline.estimate(recipe)
    assert not (home / "engines").exists(), "an estimate builds nothing"
    built = pipeline.build(recipe)
    weights = sum(map(size, built.weights_folders))
    assert said.weights_bytes == pytest.approx(weights, rel=WITHIN, abs=100_000)
    ranks = [folder for folder in built.folder.iterdir() if folder.is_dir()]
    assert said.engine_bytes == pytest.approx(sum(map(size, ranks)), rel=WITHIN)


@needs_compiler
@pytest.mark.parametrize("weights", ["external", "embedded"])
def test_memory_is_what_the_compiler_took(home: Path, weights: str) -> None:
    recipe = compose("demo", [*RTX, "dtype=bf16", f"engine.weights={weights}"]).recipe
    said = pipeline.estimate(recipe)
    built = pipeline.build(recipe)
    network = json.loads((built.folder / "rank-0" / "network.json").read_text("utf-8"))
    assert said.memory_bytes == pytest.approx(network["peak_bytes"], rel=WITHIN)


def test_the_command_says_it_and_builds_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "demo", "--estimate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8].strip() for line in lines] == ["reads", "writes", "", "memory", "time"]
    assert main(["build", "demo", "--estimate", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["read_bytes"] > 10_000_000
    assert not (home / "engines").exists()
