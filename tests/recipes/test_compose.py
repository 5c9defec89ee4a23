"""Composition: recipes by name, overrides, a user's own recipes, and where each value came from."""

import os
import threading
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from omegaconf import OmegaConf

from paddock.recipes import engine_kinds, listing
from paddock.recipes.compose import available, compose, expand_sweep
from paddock.recipes.config_path import OURS
from paddock.recipes.errors import RecipeError
from paddock.recipes.needs import parameters
from paddock.recipes.schema import Recipe


def problem(name: str, *overrides: str, config_dirs: tuple[Path, ...] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        compose(name, overrides, config_dirs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "my recipes"
    folder.mkdir()
    return folder


def test_the_grammar_of_the_readme() -> None:
    recipe = compose("demo", ["engine=openvino", "quant=int8", "limits.max_sequences=16"]).recipe
    assert recipe.engine.name == "openvino"
    assert recipe.quant.weights == "int8"
    assert recipe.limits.max_sequences == 16
    assert recipe.name == "demo"
    assert recipe.checkpoint == "demo"
    assert recipe.dtype == "f32"


@pytest.mark.parametrize("name", sorted(f.stem for f in OURS.glob("*.yaml")))
def test_every_recipe_that_ships(name: str) -> None:
    if name == "auto":
        assert "leaves checkpoint to you" in problem("auto")
        return
    recipe = compose(name).recipe
    assert recipe.summary
    assert recipe.family
    assert parameters(recipe.size)
    assert recipe.verify
    assert name == "demo" or recipe.checkpoint.count("/") == 1


@pytest.mark.parametrize("group", ["engine", "quant", "mesh", "limits", "sampling"])
def test_every_option_of_every_group_composes(group: str) -> None:
    options = sorted(f.stem for f in (OURS / group).glob("*.yaml"))
    assert options
    for option in options:
        recipe = compose("demo", [f"{group}={option}"]).recipe
        assert getattr(recipe, group) is not None


def test_the_groups_spell_out_every_key_of_the_schema() -> None:
    """Of engines, which have settings of their own, all files together."""
    composed = [compose("demo", [f"engine={name}"]).sources for name in engine_kinds.names()]
    unsaid = [{key for key, place in sources.items() if place == "default"} for sources in composed]
    assert not set.intersection(*unsaid)
    assert all(key.startswith("engine.") for key in set.union(*unsaid))


def test_sources_name_file_and_line() -> None:
    sources = compose("demo", ["quant=int8", "limits.max_sequences=16"]).sources
    lines = (OURS / "demo.yaml").read_text("utf-8").splitlines()
    place = sources["dtype"]
    assert place.startswith("recipes/demo.yaml:")
    assert lines[int(place.rpartition(":")[2]) - 1] == "dtype: f32"
    assert sources["limits.max_sequences"] == "command line"
    assert sources["quant.weights"] == "recipes/quant/int8.yaml:3, chosen by quant=int8"
    assert sources["mesh.tp"] == "recipes/mesh/single.yaml:2"
    assert sources["revision"].startswith("recipes/auto.yaml:")
    assert sources["name"] == "recipes/demo.yaml"
    assert set(sources) == set(_keys(compose("demo").recipe.model_dump()))


def _keys(values: dict[str, object], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in values.items():
        keys += _keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return keys


def test_a_users_recipe_inherits_from_ours(mine: Path) -> None:
    (mine / "support.yaml").write_text(
        "defaults: [qwen3-0.6b, override quant: int8, _self_]\n"
        "summary: Answers support mail\n"
        "limits:\n"
        "  max_context: 4096\n"
    )
    composed = compose("support", [], [mine])
    assert composed.recipe.checkpoint == "Qwen/Qwen3-0.6B"
    assert composed.recipe.quant.weights == "int8"
    assert composed.recipe.limits.max_context == 4096
    assert composed.sources["limits.max_context"] == f"{mine / 'support.yaml'}:4"
    assert composed.sources["checkpoint"].startswith("recipes/qwen3-0.6b.yaml:")
    names = [recipe.name for recipe in available([mine])]
    assert "support" in names
    assert "demo" in names


def test_a_users_recipe_and_option_may_shadow_ours(mine: Path) -> None:
    (mine / "demo.yaml").write_text("defaults: [auto, _self_]\ncheckpoint: /elsewhere\n")
    (mine / "engine").mkdir()
    (mine / "engine" / "openvino.yaml").write_text("name: openvino\nthreads: 3\n")
    composed = compose("demo", [], [mine])
    assert composed.recipe.checkpoint == "/elsewhere"
    assert composed.recipe.engine.threads == 3
    assert composed.sources["engine.cache_dtype"] == "default"
    assert composed.sources["engine.threads"] == f"{mine / 'engine' / 'openvino.yaml'}:2"
    assert [r.file for r in available([mine]) if r.name == "demo"] == [mine / "demo.yaml"]


def test_several_folders_are_searched_in_order(mine: Path, tmp_path: Path) -> None:
    other = tmp_path / 'other "folder"'
    other.mkdir()
    for folder, context in ((mine, 100), (other, 200)):
        (folder / "both.yaml").write_text(
            f"defaults: [demo, _self_]\nlimits: {{max_context: {context}}}\n"
        )
    (other / "second.yaml").write_text("defaults: [both, _self_]\n")
    assert compose("both", [], [mine, other]).recipe.limits.max_context == 100
    assert compose("second", [], [mine, other]).recipe.limits.max_context == 100
    assert compose("both", [], [other]).recipe.limits.max_context == 200


def test_a_recipe_without_a_group_takes_the_schemas_defaults_and_any_option(mine: Path) -> None:
    (mine / "bare.yaml").write_text("checkpoint: demo\n")
    assert compose("bare", [], [mine]).recipe == Recipe(name="bare", checkpoint="demo")
    changed = compose("bare", ["quant=int4", "limits.max_context=64"], [mine]).recipe
    assert changed.quant.group == 32
    assert changed.limits.max_context == 64


def test_a_users_mistakes_are_listed_and_do_not_hide_the_rest(mine: Path) -> None:
    (mine / "broken.yaml").write_text("checkpoint: [\n")
    (mine / "wrong.yaml").write_text("defaults: [demo, _self_]\nlimits: {max_contxt: 3}\n")
    listed = {recipe.name: recipe for recipe in available([mine])}
    assert f"{mine / 'broken.yaml'}" in listed["broken"].problem
    assert "max_context" in listed["wrong"].problem
    assert f"({mine / 'wrong.yaml'}:2)" in listed["wrong"].problem
    assert not listed["demo"].problem
    assert listed["smollm2-135m"].needs == "0.3 GB of memory, 0.3 GB to download"


@pytest.mark.parametrize("name", [r.name for r in available() if r.name != "auto"])
def test_a_list_reads_what_hydra_composes(name: str) -> None:
    values = listing.read(name, [OURS])
    assert values is not None
    assert Recipe.model_validate({**values, "name": name}) == compose(name).recipe


def test_a_list_asks_hydra_for_unusual_forms(mine: Path) -> None:
    recipes = {
        "plain": "defaults: [qwen3-0.6b, override quant: int8, _self_]\nlimits: {aging_s: 2.0}\n",
        "deeper": "defaults: [plain, override /quant: int4, override engine: reference, _self_]\n",
        "first": "defaults: [_self_, demo]\ndtype: bf16\n",
        "refers": "defaults: [demo, _self_]\nsummary: ${size}\n",
        "implicit": "defaults: [demo]\ndtype: bf16\n",
        "optional": "defaults: [demo, optional limits: nothing, _self_]\n",
        "missing": "defaults: [demo, nothing, _self_]\n",
    }
    for name, text in recipes.items():
        (mine / f"{name}.yaml").write_text(text)
    for name in recipes:
        values = listing.read(name, [mine, OURS])
        assert (values is not None) == (name in ("plain", "deeper", "first")), name
        if values is not None:
            found = Recipe.model_validate({**values, "name": name})
            assert found == compose(name, (), [mine]).recipe, name


def test_unknown_names() -> None:
    assert "nearest is 'demo'" in problem("dmeo")
    assert "paddock list" in problem("nothing-like-it")
    message = problem(os.path.relpath(OURS / "demo.yaml"))
    assert message.endswith(" demo`")
    assert "--config-dir" in message


def test_a_checkpoint_in_the_place_of_a_recipes_name(tmp_path: Path) -> None:
    (tmp_path / 'my "model"').mkdir()
    for name in ("Qwen/Qwen3-0.6B", "Org/Name@v1.0", str(tmp_path / 'my "model"')):
        composed = compose(name, ["quant=int8"])
        assert composed.recipe.name == "auto"
        assert composed.recipe.checkpoint == name
        assert composed.recipe.quant.weights == "int8"
        assert composed.sources["checkpoint"] == "command line"
    assert len(expand_sweep("Org/Name", ["quant=none,int8"])) == 2
    for name in ("/not/there", "a/b/c", "qwen3"):
        assert "no recipe" in problem(name)


def test_config_dir_must_be_a_folder(tmp_path: Path) -> None:
    assert "it is not there" in problem("demo", config_dirs=(tmp_path / "no",))
    (tmp_path / "file").touch()
    assert "it is not a folder" in problem("demo", config_dirs=(tmp_path / "file",))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quant=int5", ["no option 'int5'", "int4, int8, none", "nearest"]),
        ("quant=", ["group of settings", "quant.weights=..."]),
        ("quant={weights: int8}", ["group of settings"]),
        ("limits=3", ["group of settings", "machine"]),
        ("limits.max_seqs=3", ["no key 'limits.max_seqs'", "'limits.max_sequences'"]),
        ("max_sequences=3", ["nearest is 'limits.max_sequences'"]),
        ("fast", ["expected key=value", "quant=int8"]),
        ("limits.max_sequences=many", ["expected a whole number, found 'many'", "command line"]),
        ("limits.max_sequences=1.5", ["expected a whole number, found 1.5"]),
        ("limits.max_sequences='4'", ["expected a whole number, found '4'"]),
        ("limits.max_sequences=true", ["expected a whole number, found True"]),
        ("limits.max_sequences=0", ["expected more than 0, found 0"]),
        ("limits.cache_gib=nan", ["limits.cache_gib", "nan"]),
        ("dtype=f33", ["expected 'auto', 'f32', 'bf16' or 'f16', found 'f33'"]),
        ("verify=maybe", ["expected true or false, found 'maybe'"]),
        ("engine.name=3", ["engine.name: expected a text, found 3"]),
        ("sampling.temperature=-1", ["sampling.temperature: ", "-1", "command line"]),
        ("plugins={a: b}", ["plugins"]),
        ("checkpoint=a,b", ["several values", "--multirun", "checkpoint=[a,b]"]),
        ("checkpoint=a=b", ["quote it: 'checkpoint=\"a=b\"'"]),
        ("checkpoint=[a", ["quote it"]),
        ("checkpoint=~/models", ["shell"]),
        ("hydra.run.dir=/tmp", ["--config-dir"]),
        ("hydra/launcher=basic", ["--config-dir"]),
        ("name=other", ["named by its file", "command line"]),
        ("+_target_=os.system", ["no key '_target_'"]),
        ("++engine._target_=os.system", ["no key 'engine._target_'"]),
        ("~nothing", ["no key 'nothing'"]),
        ("dtype=${eval:3}", ["${eval:...} would run code", "oc.env"]),
        ("dtype=${nothing}", ["'nothing'"]),
        ("revision=main", []),
    ],
)
def test_overrides_that_are_wrong(override: str, words: list[str]) -> None:
    if not words:
        assert compose("smollm2-135m", [override]).recipe.revision == "main"
        return
    message = problem("smollm2-135m", override)
    for word in words:
        assert word in message


def test_settings_that_contradict_each_other() -> None:
    assert "needs a group" in problem("demo", "quant=int4", "quant.group=null")
    assert "int8, int4 or fp8" in problem("demo", "quant.group=32")
    assert "given twice" in problem("demo", "checkpoint=a/b@c", "revision=d")


def test_values_with_unusual_characters() -> None:
    given = "checkpoint=/a b/c-d_e.f@v1:2+3"
    assert compose("demo", [given]).recipe.checkpoint == given.partition("=")[2]
    assert compose("demo", ['checkpoint="a,b=[c]"']).recipe.checkpoint == "a,b=[c]"
    assert compose("demo", ["sampling.stop=[x,'y z']"]).recipe.sampling.stop == ("x", "y z")
    assert compose("demo", ["plugins=my.module"]).recipe.plugins == ("my.module",)


def test_the_last_override_of_a_key_wins() -> None:
    overrides = ["limits.max_context=1", "limits.max_context=2", "quant=int8", "quant=int4"]
    composed = compose("demo", overrides)
    assert composed.recipe.limits.max_context == 2
    assert composed.recipe.quant.weights == "int4"
    assert composed.sources["quant.weights"].endswith("chosen by quant=int4")


def test_interpolation_refers_to_keys_and_the_environment(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_MODELS", "/models")
    (mine / "mine.yaml").write_text(
        "defaults: [auto, _self_]\n"
        "checkpoint: ${oc.env:MY_MODELS}/one\n"
        "limits: {max_context: 512, max_queued_tokens: '${limits.max_context}'}\n"
    )
    recipe = compose("mine", [], [mine]).recipe
    assert recipe.checkpoint == "/models/one"
    assert recipe.limits.max_queued_tokens == 512


@pytest.mark.parametrize(
    "value",
    [
        "${run:x}",
        "${ run : x }",
        "a ${oc.env:HOME,${run:x}} b",
        "${${dtype}:x}",
        "${oc.env:${run:x}}",
    ],
)
def test_resolvers_that_run_code_are_refused(mine: Path, value: str) -> None:
    ran = []

    def run(*given: str) -> str:
        ran.append(given)
        return "x"

    OmegaConf.register_new_resolver("run", run, replace=True)
    try:
        (mine / "mine.yaml").write_text(f"defaults: [demo, _self_]\nsummary: '{value}'\n")
        assert "would run code" in problem("mine", config_dirs=(mine,))
    finally:
        OmegaConf.clear_resolver("run")
    assert not ran


def test_a_recipe_names_no_code(mine: Path) -> None:
    (mine / "mine.yaml").write_text("defaults: [demo, _self_]\nengine: {_target_: os.system}\n")
    assert "engine._target_" in problem("mine", config_dirs=(mine,))
    (mine / "mine.yaml").write_text("checkpoint: !!python/name:os.system\n")
    assert "mine.yaml" in problem("mine", config_dirs=(mine,))


def test_a_recipe_that_inherits_from_itself_or_from_nothing(mine: Path) -> None:
    (mine / "demo.yaml").write_text("defaults: [demo, _self_]\n")
    assert "inherits from itself" in problem("demo", config_dirs=(mine,))
    (mine / "mine.yaml").write_text("defaults: [dmo, _self_]\n")
    assert "'dmo'" in problem("mine", config_dirs=(mine,))
    (mine / "mine.yaml").write_text("defaults: [{engine: abacus}, _self_]\ncheckpoint: demo\n")
    assert "abacus" in problem("mine", config_dirs=(mine,))


@pytest.mark.parametrize("content", ["- a\n- b\n", "", "checkpoint: 3\n", "\xff\xfe", "a: b: c\n"])
def test_files_that_are_no_recipe(mine: Path, content: str) -> None:
    (mine / "mine.yaml").write_bytes(content.encode("latin-1"))
    assert "mine" in problem("mine", config_dirs=(mine,))


def test_sweeps() -> None:
    runs = expand_sweep(
        "demo", ["quant=none,int8", "limits.max_sequences=range(1,9,4)", "dtype=f32"]
    )
    assert runs == [
        [f"quant={quant}", f"limits.max_sequences={count}", "dtype=f32"]
        for quant in ("none", "int8")
        for count in (1, 5)
    ]
    engines = expand_sweep("demo", ["engine=glob(*)"])
    assert ["engine=openvino"] in engines
    assert ["engine=reference"] in engines
    assert expand_sweep("demo") == [[]]
    with pytest.raises(RecipeError, match="int9"):
        expand_sweep("demo", ["quant=none,int9"])
    with pytest.raises(RecipeError, match="interval"):
        expand_sweep("demo", ["limits.max_context=interval(1,2)"])


def test_hydras_global_state_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        compose("demo", ["quant=int8"])
        problem("demo", "quant.weights=3")
        assert hydra_compose("config").a == 1
        assert str(VersionBase.instance().getbase()) == "1.2"
    assert not GlobalHydra.instance().is_initialized()


def test_threads_compose_at_once() -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                composed = compose("demo", [f"limits.max_context={number + 1}"])
                assert composed.recipe.limits.max_context == number + 1
                assert composed.sources["limits.max_context"] == "command line"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
