"""The whole product on the demo checkpoint: real builds by both engines, and what stops them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.engines import openvino
from paddock.engines.protocol import BuildError
from paddock.graph import Array, DType, PaddockError
from paddock.models.config import ConfigError
from paddock.models.registry import ARCHITECTURES
from paddock.recipes import engine_kinds, pipeline, verify
from paddock.recipes.build_cache import BuildCache
from paddock.recipes.compose import compose
from paddock.recipes.errors import RecipeError
from paddock.recipes.machine import measure
from paddock.recipes.pipeline import BuiltEngine
from paddock.recipes.progress import SILENT, Progress
from paddock.recipes.schema import Recipe
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.weights.errors import WeightError

Copy = Callable[..., Path]
PROMPT = "The ls command"


def recipe(*overrides: str, name: str = "demo") -> Recipe:
    return compose(name, overrides).recipe


def build(*overrides: str, progress: Progress = SILENT, **options: Any) -> BuiltEngine:
    return pipeline.build(recipe(*overrides), progress=progress, **options)


def text(*overrides: str, name: str = "demo", max_tokens: int = 12) -> str:
    """What a started recipe writes, greedily."""
    running = pipeline.start(recipe(*overrides, name=name))
    try:
        params = SamplingParams(**{**running.sampling_defaults, "max_tokens": max_tokens})
        return running.loop.submit(PROMPT, params).result().sequences[0].text
    finally:
        running.close()


def left_in(home: Path) -> list[str]:
    """What a stopped build might leave: anything but locks and hashes."""
    files = (f for f in home.rglob("*") if f.is_file() and ".locks" not in f.parts)
    return sorted(str(f.relative_to(home)) for f in files if not f.name.startswith("file-hashes"))


# --- in order ---------------------------------------------------------------------------------


def test_the_demo_runs_and_is_found_again(home: Path, notes: Any) -> None:
    first = pipeline.start(recipe(), progress=notes)
    try:
        assert not first.built.cached
        assert first.built.reasons == ["nothing was built of demo yet"]
        assert "checked against the reference engine: 6 layers" in notes.text
        assert "it reads" in notes.text
        assert notes.stages["bind"][0] == notes.stages["bind"][1]
        assert first.sampling_defaults == {"temperature": 0.0, "max_tokens": 128}
        assert first.loop.limits.max_context == 1024
        assert first.built.folder.parent == home / "engines"
        result = first.loop.submit(PROMPT, SamplingParams(temperature=0.0, max_tokens=8)).result()
        assert len(result.sequences[0].token_ids) == 8
    finally:
        first.close()
    notes.lines.clear()
    second = pipeline.start(recipe(), progress=notes)
    try:
        assert second.built.cached
        assert second.built.reasons == []
        assert second.built.folder == first.built.folder
        assert notes.lines == []
        assert {"fetch", "trace", "look up", "tokenizer", "open"} <= set(second.timings)
    finally:
        second.close()


def test_both_engines_write_the_same_and_share_their_weights(home: Path) -> None:
    assert text("engine=openvino") == text("engine=reference")
    assert len(list((home / "weights").glob("*-*"))) == 1
    assert len(list((home / "engines").glob("*-*"))) == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ("quant=int8",),
        ("quant=int4",),
        ("dtype=bf16",),
        ("dtype=bf16", "quant=int8"),
        ("engine.cache_dtype=u8",),
        ("quant=int8", "quant.head=none", "quant.skip=[model.layers.0.*]"),
    ],
)
def test_every_form_of_the_demo_builds_and_passes_its_check(
    shared_home: Path, overrides: tuple[str, ...]
) -> None:
    built = build(*overrides)
    check = built.manifest["check"]
    assert check["layers"] == 6
    assert check["error"] > 0
    assert check["share"] < 0.75  # a margin, so that others' processors pass
    assert text(*overrides).strip()


def test_the_manifest_tells_the_whole_story(shared_home: Path) -> None:
    built = build("quant=int8", "engine.threads=1")
    manifest = json.loads((built.folder / "manifest.json").read_text("utf-8"))
    assert manifest == dict(built.manifest)
    assert manifest["recipe"] == "demo"
    assert manifest["architecture"] == "LlamaForCausalLM"
    assert manifest["config"]["hidden_size"] == 256
    assert manifest["mesh"] == {"tp": 1, "pp": 1, "stages": [6]}
    assert manifest["max_context"] == 1024
    assert manifest["checkpoint"]["name"] == "demo"
    assert manifest["engine"]["name"] == "openvino"
    assert manifest["engine"]["version"] == openvino.version()
    assert set(manifest["tokenizer"]) >= {"tokenizer.json", "tokenizer_config.json"}
    assert manifest["key_parts"]["dtype"] == "f32"
    assert manifest["key_parts"]["quant"].startswith("int8")
    assert manifest["files"]
    # int8: a byte for each of 5.8 M parameters, the embedding in f32 beside its head.
    assert 6e6 < manifest["weight_bytes"] < 12e6


def test_the_bf16_demo_copies_nothing_of_the_checkpoint(home: Path) -> None:
    built = build("dtype=bf16")
    assert sum(f.stat().st_size for f in built.weights_folder.rglob("*.safetensors")) < 100_000


# --- why something is built again ---------------------------------------------------------------


def test_a_miss_says_what_changed(home: Path) -> None:
    build("engine=reference", "quant=int8")
    assert build("engine=reference", "quant=int4").reasons == [
        "quant: was int8 group=None head=same skip=[], now int4 group=32 head=int8 skip=[]"
    ]
    [reason] = build("engine=openvino", "quant=int4").reasons
    assert reason.startswith("engine: was reference (numpy")
    assert ", now openvino (" in reason


def test_run_time_settings_build_nothing_anew(home: Path) -> None:
    build("engine=reference")
    others = [
        "engine.threads=1",
        "limits.max_sequences=3",
        "sampling.seed=1",
        "limits.max_context=64",
    ]
    for override in others:
        assert build("engine=reference", override).cached
    running = pipeline.start(recipe("engine=reference", "limits.max_context=64"))
    try:
        assert running.loop.limits.max_context == 64
    finally:
        running.close()


def test_another_recipe_of_the_same_engine_finds_it(home: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "my-demo.yaml").write_text("defaults: [demo, override engine: reference, _self_]\n")
    build("engine=reference")
    assert pipeline.build(compose("my-demo", (), [mine]).recipe).cached


def test_a_changed_checkpoint_of_the_same_shapes_is_another(home: Path, copy_of_demo: Copy) -> None:
    folder = copy_of_demo()
    given = f"checkpoint={folder}"
    first = build("engine=reference", given)
    assert build("engine=reference", given).cached
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x00\x3f")
    second = build("engine=reference", given)
    assert second.reasons == ["the checkpoint's content changed"]
    assert second.weights_folder != first.weights_folder


def test_a_moved_checkpoint_is_the_same(home: Path, copy_of_demo: Copy) -> None:
    folder = copy_of_demo()
    build("engine=reference", "dtype=bf16", f"checkpoint={folder}")
    moved = folder.rename(folder.with_name("moved"))
    built = build("engine=reference", "dtype=bf16", f"checkpoint={moved}")
    assert built.cached
    pipeline.open_engine(built, recipe("engine=reference", "dtype=bf16")).close()


def test_rebuild(home: Path) -> None:
    first = build("engine=reference")
    again = build("engine=reference", rebuild=True)
    assert not again.cached
    assert again.reasons == ["it was asked for"]
    assert again.folder == first.folder


def test_a_build_that_was_never_checked_is_checked_when_asked(home: Path, notes: Any) -> None:
    unchecked = build("verify=false")
    assert unchecked.manifest["check"] is None
    assert build("verify=false").cached
    checked = build(progress=notes)
    assert checked.reasons == ["the engine that is there was never checked (verify=false)"]
    assert "checked against" in notes.text
    assert build("verify=false").cached


def damage_engine(home: Path, built: BuiltEngine) -> str:
    (built.folder / "manifest.json").write_text("not JSON")
    return "the engine that was there is damaged: its manifest.json cannot be read"


def damage_engine_file(home: Path, built: BuiltEngine) -> str:
    file = next(f for f in (built.folder / "rank-0").iterdir())
    file.write_bytes(file.read_bytes()[:-10])
    return f"the engine that was there is damaged: its file rank-0/{file.name} has"


def lose_engine_file(home: Path, built: BuiltEngine) -> str:
    file = next(f for f in (built.folder / "rank-0").iterdir())
    file.unlink()
    return f"the engine that was there is damaged: its file rank-0/{file.name} cannot be read"


@pytest.mark.parametrize("damage", [damage_engine, damage_engine_file, lose_engine_file])
@pytest.mark.parametrize("engine", ["reference", "openvino"])
def test_a_damaged_engine_is_built_again_and_says_why(
    home: Path, damage: Callable[[Path, BuiltEngine], str], engine: str
) -> None:
    expected = damage(home, build(f"engine={engine}"))
    again = build(f"engine={engine}")
    assert len(again.reasons) == 1
    assert again.reasons[0].startswith(expected)
    assert build(f"engine={engine}").cached


def damage_weights(folder: Path) -> None:
    file = folder / "rank-0" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def damage_weights_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def damage_weights_table(folder: Path) -> None:
    (folder / "rank-0" / "weights.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [damage_weights, damage_weights_manifest, damage_weights_table, shutil.rmtree]
)
def test_damaged_weights_are_bound_again(
    home: Path, notes: Any, damage: Callable[[Path], None]
) -> None:
    first = build("engine=reference")
    damage(first.weights_folder)
    again = build("engine=reference", progress=notes)
    assert again.cached  # the engine itself is in order
    assert "binding the weights of demo again" in notes.text
    pipeline.open_engine(again, recipe("engine=reference")).close()
    assert text("engine=reference", max_tokens=2)


def test_a_build_after_everything_was_pruned(home: Path) -> None:
    build("engine=reference")
    BuildCache().prune(everything=True)
    assert left_in(home) == []
    assert build("engine=reference").reasons == ["nothing was built of demo yet"]


# --- what is refused, before anything expensive ---------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.name=openvni"], "no engine 'openvni'; nearest is 'openvino'"),
        (["dtype=f16"], "does not compute in f16; it has f32"),
        (["mesh.stages=[3,3]"], "stages [3, 3] are not 1 stages of a layer or more, as pp=1 says"),
        (["engine=reference", "engine.cache_dtype=u8"], "keeps no u8 cache; it has auto"),
        (["limits.max_context=2000"], "the model was trained for 1024"),
        (["quant=int8", "quant.skip=[modl.layers.0.mlp.down_proj.weight]"], "nearest"),
        (["plugins=[no.such.module]"], "'no.such.module' cannot be imported"),
        (["chat_template=/no/such/file"], "/no/such/file"),
        (["limits.cache_gib=100000.0"], "of memory are free"),
        (["limits.max_sequences=600", "limits.max_tokens_per_step=500"], "must not be less"),
    ],
)
def test_recipes_that_do_not_fit(shared_home: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        pipeline.start(recipe(*overrides))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"architectures": ["LlamaForCausalLm"]}, ConfigError, "LlamaForCausalLM"),
        ({"architectures": None}, ConfigError, "architectures"),
        ({"logit_softcap": 30.0}, ConfigError, "ignore_config"),
        ({"hidden_size": "many"}, ConfigError, "hidden_size"),
        ({"intermediate_size": 512}, WeightError, "mlp"),
        ({"num_hidden_layers": 7}, WeightError, "layers.6"),
        ({"num_hidden_layers": 5}, WeightError, "layers.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, ConfigError, "gptq"),
    ],
)
def test_checkpoints_that_do_not_fit(
    home: Path, copy_of_demo: Copy, config: dict[str, Any], error: type[PaddockError], words: str
) -> None:
    folder = copy_of_demo(**config)
    with pytest.raises(error) as caught:
        build("engine=reference", f"checkpoint={folder}")
    assert words in str(caught.value)
    assert left_in(home) == []


def test_ignored_config_fields(home: Path, copy_of_demo: Copy) -> None:
    folder = copy_of_demo(logit_softcap=30.0)
    assert build("engine=reference", f"checkpoint={folder}", "ignore_config=[logit_softcap]")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def short_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "harm", [no_config, broken_config, no_weights, short_weights, no_tokenizer]
)
def test_folders_that_are_no_checkpoint(
    home: Path, copy_of_demo: Copy, harm: Callable[[Path], None]
) -> None:
    folder = copy_of_demo()
    harm(folder)
    with pytest.raises(PaddockError) as caught:
        pipeline.start(recipe("engine=reference", f"checkpoint={folder}"))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_checkpoint(home: Path) -> None:
    with pytest.raises(WeightError, match="no such folder"):
        build("checkpoint=./nowhere")


# --- the check ---------------------------------------------------------------------------------


class Lying:
    """OpenVINO, but for one thing: `spoil` sees every step's logits."""

    NAME = "openvino"
    CAPABILITIES = openvino.CAPABILITIES
    version = staticmethod(openvino.version)

    def __init__(self, spoil: Callable[[Array], Array]) -> None:
        self._spoil = spoil

    def build(self, graph: Any, options: Any) -> Any:
        return self._of(openvino.build(graph, options))

    def load(self, folder: Path) -> Any:
        return self._of(openvino.load(folder))

    def _of(self, engine: Any) -> Any:
        opened, spoil = engine.open, self._spoil

        def open_lying(weights: Any, options: Any, communicator: Any = None) -> Any:
            session = opened(weights, options, communicator)
            run = session.run
            session.run = lambda step: spoil(np.array(run(step)))
            return session

        engine.open = open_lying
        return engine


def test_an_engine_that_computes_something_else_is_not_published(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying = Lying(lambda logits: logits + np.linspace(0, 2, logits.shape[1], dtype=np.float32))
    monkeypatch.setattr(engine_kinds, "load", lambda name: lying)
    with pytest.raises(BuildError, match="does not compute what the model says"):
        build()
    assert list((home / "engines").glob("*-*")) == []
    assert build("verify=false").folder.is_dir()


def test_a_large_model_is_compared_in_its_first_layers_and_run_in_all(
    home: Path, monkeypatch: pytest.MonkeyPatch, notes: Any
) -> None:
    monkeypatch.setattr(verify, "WHOLE_BYTES", 1 << 20)
    built = build(progress=notes)
    assert "4 of 6 layers" in notes.text
    assert built.manifest["check"]["layers"] == 4
    lying = Lying(lambda logits: logits * np.float32(np.nan))
    monkeypatch.setattr(engine_kinds, "load", lambda name: lying)
    with pytest.raises(BuildError, match="NaN"):
        build(rebuild=True)


def test_a_model_too_large_for_the_reference_is_only_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, notes: Any
) -> None:
    monkeypatch.setattr(verify, "layers_to_check", lambda *sizes: 0)
    built = build(progress=notes)
    assert "is not compared with the reference engine" in notes.text
    assert built.manifest["check"]["layers"] == 0
    assert build().cached


def test_weights_that_are_not_finite_are_warned_of(
    home: Path, copy_of_demo: Copy, notes: Any
) -> None:
    folder = copy_of_demo()
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\xc0\x7f")  # a bf16 NaN
    build("engine=reference", f"checkpoint={folder}", "verify=false", progress=notes)
    assert "warning: " in notes.text
    assert "NaN" in notes.text


# --- plugins, hub-like folders --------------------------------------------------------------------


def test_a_users_architecture_from_a_plugin(
    home: Path, copy_of_demo: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of the user's own; a module that lies in the checkpoint is not looked at."""
    folder = copy_of_demo(architectures=["MyForCausalLM"])
    (folder / "my_zoo.py").write_text("raise SystemExit('code of a checkpoint was run')")
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "my_zoo.py").write_text(
        "from paddock.models.llama import LlamaForCausalLM\n"
        "from paddock.models.registry import register\n"
        "class MyForCausalLM(LlamaForCausalLM):\n"
        "    pass\n"
        "register('MyForCausalLM', __name__)\n"
    )
    given = ["engine=reference", f"checkpoint={folder}"]
    with pytest.raises(ConfigError, match="MyForCausalLM"):
        build(*given)
    monkeypatch.syspath_prepend(str(plugins))
    monkeypatch.setattr("paddock.models.registry.ARCHITECTURES", dict(ARCHITECTURES))
    try:
        assert text(*given, "plugins=[my_zoo]", max_tokens=4) == text(
            "engine=reference", max_tokens=4
        )
    finally:
        sys.modules.pop("my_zoo", None)


def test_auto_takes_a_folder_as_a_hub_would_give_it(home: Path, copy_of_demo: Copy) -> None:
    folder = copy_of_demo("models--Org--Name")
    (folder / "README.md").write_text("a model")
    assert text(f"checkpoint={folder}", "dtype=f32", name="auto") == text()
    assert len(list((home / "engines").glob("*-*"))) == 1  # the same content, the same engine


def test_auto_takes_the_type_of_checkpoint_and_processor(home: Path) -> None:
    built = pipeline.build(recipe("checkpoint=demo", name="auto"))
    expected = DType.BF16 if measure().has_bf16 else DType.F32
    assert built.manifest["key_parts"]["dtype"] == expected


def test_a_chat_template_of_the_users(shared_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    running = pipeline.start(recipe(f"chat_template={file}"))
    try:
        messages = [{"role": "user", "content": "hello"}]
        assert running.tokenizer.apply_chat_template(messages) == "<hello>"
    finally:
        running.close()


# --- real processes ----------------------------------------------------------------------------

SCRIPT = textwrap.dedent(
    """
    import sys, time
    from paddock.graph import PaddockError
    from paddock.recipes import builder, pipeline
    from paddock.recipes.compose import compose

    class Notes:
        def note(self, text):
            print("note:", text, flush=True)
        def update(self, stage, done, total, unit):
            if stage == sys.argv[1] and not done:
                print("at", stage, flush=True)
                time.sleep(float(sys.argv[2]))

    try:
        built = pipeline.build(compose("demo", sys.argv[3:]).recipe, progress=Notes())
    except PaddockError as error:
        print("error:", type(error).__name__, error, flush=True)
        sys.exit(1)
    print("cached" if built.cached else "built", built.folder, flush=True)
    """
)


def process(stage: str, seconds: float, *overrides: str, before: str = "") -> subprocess.Popen[str]:
    """A build that rests at a stage."""
    return subprocess.Popen(
        [sys.executable, "-c", before + SCRIPT, stage, str(seconds), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line_of(running: subprocess.Popen[str], start: str) -> str:
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f"no {start!r}: {running.communicate()[1]}")


def test_two_processes_build_once(home: Path) -> None:
    first = process("compile", 3)
    line_of(first, "at compile")
    second = process("none", 0)
    assert f"process {first.pid}" in line_of(second, "note: process")
    folder = line_of(first, "built").split()[1]
    assert line_of(second, "cached").split()[1] == folder
    assert [p.wait() for p in (first, second)] == [0, 0]
    for each in (first, second):
        each.communicate()


@pytest.mark.parametrize("stage", ["bind", "compile", "check"])
def test_ctrl_c_in_a_build_leaves_nothing_half_written(home: Path, stage: str) -> None:
    running = process(stage, 60) if stage != "bind" else process("bind", 60, "quant=int4")
    if stage == "bind":
        line_of(running, "note: it reads")
    else:
        line_of(running, f"at {stage}")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=180)
    assert running.returncode != 0
    assert list((home / "engines").glob("*-*")) == []
    assert not [f for f in left_in(home) if f.startswith("engines/")]
    for folder in (home / "weights").glob("*-*"):
        assert (folder / "manifest.json").is_file()  # bound whole before, and kept
    assert build("engine=openvino").folder.is_dir()


def test_a_killed_build_does_not_stand_in_the_way(home: Path) -> None:
    running = process("check", 60)
    line_of(running, "at check")
    running.kill()
    running.communicate()
    assert list((home / "engines").glob(".building-*"))
    assert not build().cached
    assert not list((home / "engines").glob(".building-*"))


def test_a_disk_that_is_full(home: Path) -> None:
    """The kernel refuses files of more than 100 kB, as it would refuse them on a full disk."""
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    )
    running = process("none", 0, before=limit)
    output, errors = running.communicate(timeout=180)
    assert running.returncode == 1, errors
    assert "error: WeightError" in output
    assert "no room" in output
    assert left_in(home) == []


def test_too_little_space_is_known_before_anything_is_written(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paddock.recipes.build_cache.free_space", lambda folder: 20 << 20)
    with pytest.raises(BuildError, match=r"bound weights need 0.03 GiB .*cache prune"):
        build()
    assert left_in(home) == []
