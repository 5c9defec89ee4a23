"""What `paddock inspect` says of an engine is what is in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from safetensors import safe_open

from paddock.__main__ import main
from paddock.commands.inspect_page import page
from paddock.engines.tensorrt import flavours
from paddock.recipes import pipeline
from paddock.recipes.build_cache import BuildCache
from paddock.recipes.compose import compose
from paddock.recipes.errors import RecipeError
from paddock.recipes.inspection import Inspection, ModuleReport, folded, inspect
from paddock.recipes.shelf import Entry

VOID = {"meta", "br", "img", "hr", "link", "input"}


def built(*overrides: str) -> Entry:
    engine = pipeline.build(compose("demo", overrides).recipe)
    return BuildCache().named(engine.folder.name)


def find(found: Inspection, path: str, rank: int = 0) -> ModuleReport:
    module = found.ranks[rank].model
    for name in path.split("."):
        (module,) = (inner for inner in module.modules if inner.name == name)
    return module


def test_modules_and_weights_are_the_checkpoints(shared_home: Path) -> None:
    found = inspect(built("engine=reference"))
    (rank,) = found.ranks
    stored = {}
    with safe_open(pipeline.DEMO / "model.safetensors", "numpy") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    attention = find(found, "model.layers.3.self_attn")
    assert attention.ops["attention"] == 1
    (o_proj,) = find(found, "model.layers.3.self_attn.o_proj").weights
    assert list(o_proj.shape) == stored["model.layers.3.self_attn.o_proj.weight"]
    (fused,) = find(found, "model.layers.3.self_attn.qkv_proj").weights
    parts = [stored[f"model.layers.3.self_attn.{part}_proj.weight"][0] for part in "qkv"]
    assert fused.shape == (sum(parts), stored["model.layers.3.self_attn.q_proj.weight"][1])
    assert fused.nbytes == fused.shape[0] * fused.shape[1] * 4
    layers = find(found, "model.layers")
    assert layers.weight_bytes == sum(layer.weight_bytes for layer in layers.modules)
    assert rank.weight_bytes == found.ranks[0].model.weight_bytes
    # Six layers of keys and values, 4 heads of 32, f32.
    assert rank.cache_bytes_per_token == 6 * 2 * 4 * 32 * 4
    assert rank.ops["attention"] == 6


def test_quantized_weights_take_what_they_take(shared_home: Path) -> None:
    whole = find(inspect(built(), kernels=False), "model.layers.0.mlp.down_proj")
    small = find(inspect(built("quant=int8"), kernels=False), "model.layers.0.mlp.down_proj")
    integers, scale = small.weights
    assert (integers.dtype, integers.nbytes) == ("i8", whole.weight_bytes // 4)
    assert scale.nbytes == integers.shape[0] * 2


def test_kernels_are_the_compilers(shared_home: Path) -> None:
    found = inspect(built())
    attention = [n for name, n in found.ranks[0].kernels.items() if name.startswith("PagedAtt")]
    assert attention == [6]
    assert inspect(built(), kernels=False).ranks[0].kernels == {}


@pytest.mark.skipif(
    "tensorrt_rtx" not in flavours.installed(),
    reason="tensorrt_rtx is not installed (`make tensorrt` installs it)",
)
def test_a_plans_kernels_tell_what_was_fused(shared_home: Path) -> None:
    rtx = ("engine=tensorrt", "engine.flavour=tensorrt_rtx", "engine.target=[sm89]")
    found = inspect(built(*rtx))
    assert any("MeanAddSqrtDiv" in name for name in found.ranks[0].kernels)
    assert found.facts["target"] == "sm89"
    assert found.ranks[0].files["engine.plan"] > 1_000_000
    assert "RMSNorm" in page(found)


def test_each_rank_has_its_share(shared_home: Path) -> None:
    found = inspect(built("mesh.tp=2"))
    assert len(found.ranks) == 2
    for rank in (0, 1):
        assert find(found, "model.layers.0.self_attn.o_proj", rank).weights[0].shape == (256, 128)


def test_layers_that_are_alike_are_folded() -> None:
    def layer(name: str, **ops: int) -> ModuleReport:
        return ModuleReport(name, ops)

    modules = [layer("0", add=2), layer("1", add=2), layer("2", add=3), layer("norm", add=3)]
    assert [len(alike) for alike, _ in folded(modules)] == [2, 1, 1]


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order; gathers what the page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe"):
            self.outside.append(tag)
        self.outside += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(shared_home: Path) -> None:
    found = inspect(built("engine=reference"))
    hostile = replace(found, recipe="<script>alert(1)</script>", facts={"a": "<img src=x>"})
    for text in (page(found), page(hostile)):
        parser = Balanced()
        parser.feed(text)
        assert parser.open == []
        assert parser.outside == []
        assert not re.search(r"url\(|@import|https?:", text)
    assert page(found).count("post_attention_layernorm") == 6


def test_the_command(shared_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = built("engine=reference").folder.name
    assert main(["inspect", name]) == 0
    text = capsys.readouterr().out
    # The first makes the rotary angles for all, the last is computed for the asked rows alone.
    assert "1-4 (4 alike)" in text
    assert "post_attention_layernorm" in text
    assert main(["inspect", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"][0]["ops"]["attention"] == 6
    assert main(["inspect", name, "--html", str(tmp_path / "engine.html")]) == 0
    assert (tmp_path / "engine.html").read_text("utf-8").startswith("<!doctype html>")
    assert main(["inspect"]) == 2
    assert main(["inspect", "nothing-0123"]) == 1


def test_a_folder_that_says_too_little_is_refused(shared_home: Path) -> None:
    entry = built("engine=reference")
    less = Entry(entry.folder, {k: v for k, v in entry.manifest.items() if k != "mesh"})
    with pytest.raises(RecipeError, match=r"manifest is not complete \(KeyError: 'mesh'\); build"):
        inspect(less)
