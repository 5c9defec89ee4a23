"""What is kept: keys, reasons for a miss, listing, pruning."""

import os
import time
from pathlib import Path

import pytest

from paddock.engines.protocol import BuildError
from paddock.recipes.build_cache import BuildCache, free_space, home
from paddock.recipes.build_key import differences, graph_hash, key_of
from paddock.recipes.compose import compose
from paddock.recipes.errors import RecipeError
from paddock.recipes.machine import GIB
from paddock.recipes.shelf import Entry, Manifest

PARTS = {"engine": "openvino 1", "dtype": "f32", "graph": "aa", "weights": "bb"}


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path)


def put(
    cache: BuildCache, recipe: str, parts: dict[str, str], weights: str, used: float | None = None
) -> Entry:
    """An engine of 1 MiB with 2 MiB of bound weights."""

    def write_weights(folder: Path) -> Manifest:
        (folder / "w").write_bytes(bytes(2 << 20))
        return {}

    def write_engine(folder: Path) -> Manifest:
        (folder / "e").write_bytes(bytes(1 << 20))
        return {
            "recipe": recipe,
            "key_parts": parts,
            "weights": key_of({"w": weights}),
            "checkpoint": {"name": "Org/Name"},
        }

    note = print
    cache.weights.make(key_of({"w": weights}), "model", write_weights, note=note)
    entry, _ = cache.engines.make(key_of(parts), recipe, write_engine, note=note)
    entry.touch()
    if used is not None:
        os.utime(entry.folder / "last-used", (used, used))
    return entry


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PADDOCK_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert home() == tmp_path / ".cache" / "paddock"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert home() == Path("/somewhere/paddock")
    monkeypatch.setenv("PADDOCK_HOME", "~/kept")
    assert home() == tmp_path / "kept"


def test_keys_depend_on_every_part_and_not_on_their_order() -> None:
    key = key_of(PARTS)
    assert len(key) == 16
    assert key_of(dict(reversed(PARTS.items()))) == key
    for name in PARTS:
        assert key_of(PARTS | {name: "x"}) != key
        assert key_of({k: v for k, v in PARTS.items() if k != name}) != key


def test_differences_are_causes_first() -> None:
    assert differences(PARTS, PARTS) == []
    assert differences(PARTS, PARTS | {"dtype": "bf16", "graph": "x", "weights": "y"}) == [
        "dtype: was f32, now bf16"
    ]
    [only] = differences(PARTS, PARTS | {"graph": "x"})
    assert "graph" in only
    assert len(differences(PARTS, PARTS | {"graph": "x", "weights": "y"})) == 2
    assert differences({}, {"dtype": "f32"}) == ["dtype: was not known, now f32"]
    assert differences({"old": "a"}, {}) == ["old: was a, now not known"]


def test_a_graphs_hash_is_of_what_it_computes() -> None:
    from paddock.graph import DType
    from paddock.recipes import pipeline
    from paddock.recipes.tracing import trace_graph

    recipe = compose("demo").recipe
    architecture = pipeline.read_architecture(recipe, pipeline.fetch(recipe))
    graph = trace_graph(recipe, architecture, DType.F32).graph
    source = graph.nodes[3].source
    first = graph_hash(graph)
    assert graph.nodes[3].source == source
    for node in graph.nodes:
        node.source = "elsewhere.py:1"
    assert graph_hash(graph) == first
    assert graph_hash(trace_graph(recipe, architecture, DType.BF16).graph) != first
    fewer = trace_graph(recipe, architecture, DType.F32, layers=3)
    assert fewer.layers == 3
    assert graph_hash(fewer.graph) != first


@pytest.mark.parametrize(("engine", "scale"), [("openvino", "f32"), ("reference", "f16")])
def test_scales_of_groups_are_stored_as_the_engine_wants_them(engine: str, scale: str) -> None:
    from paddock.graph import DType
    from paddock.recipes import pipeline
    from paddock.recipes.tracing import trace_graph

    recipe = compose("demo", [f"engine={engine}", "quant=int4"]).recipe
    traced = trace_graph(
        recipe, pipeline.read_architecture(recipe, pipeline.fetch(recipe)), DType.BF16
    )
    found = {n: str(w.dtype) for n, w in traced.weights.items() if n.endswith(".scale")}
    assert found.pop("lm_head.scale") == "f16"  # in int8, one a row
    assert set(found.values()) == {scale}
    # What lies in another type has another name in the cache.
    told = {str(slot.quant) for name, slot in traced.module.named_parameters() if slot.quant}
    assert ("i4 groups of 32, scales in f32" in told) == (scale == "f32")


def test_why_missing_names_the_nearest_engine_of_the_recipe(cache: BuildCache) -> None:
    assert cache.why_missing("demo", PARTS) == ["nothing was built of demo yet"]
    put(cache, "demo", PARTS | {"dtype": "bf16", "engine": "openvino 0"}, "a")
    put(cache, "other", PARTS | {"dtype": "f16"}, "a")
    put(cache, "demo", PARTS | {"engine": "reference"}, "a")
    assert cache.why_missing("demo", PARTS) == ["engine: was reference, now openvino 1"]
    assert cache.why_missing("other", PARTS) == ["dtype: was f16, now f32"]


def test_space_is_asked_for_before_it_is_used(cache: BuildCache) -> None:
    cache.require_space(1000, "x")
    with pytest.raises(BuildError, match=r"demo need .* GiB .* are free there.*cache prune"):
        cache.require_space(free_space(cache.root) + GIB, "demo")
    assert free_space(cache.root / "not" / "there" / "yet") > 0


def test_listing(cache: BuildCache) -> None:
    now = time.time()
    put(cache, "old", PARTS, "a", used=now - 1000)
    new = put(cache, "new", PARTS | {"dtype": "bf16"}, "b", used=now)
    first, second = cache.all_engines()
    assert [first.recipe, second.recipe] == ["new", "old"]
    assert first.folder == new.folder
    assert first.dtype == "bf16"
    assert first.engine == "openvino 1"
    assert first.checkpoint == "Org/Name"
    assert first.engine_bytes >= 1 << 20
    assert first.weights_bytes >= 2 << 20
    assert not first.problem
    assert abs(first.last_used - now) < 2


def test_listing_says_what_is_damaged(cache: BuildCache) -> None:
    (put(cache, "a", PARTS, "a").folder / "manifest.json").write_text("{")
    put(cache, "b", PARTS | {"dtype": "bf16"}, "b")
    for folder, _ in list(cache.weights.entries()):
        if folder.name.endswith(key_of({"w": "b"})):
            (folder / "w").write_bytes(b"")
    problems = {engine.recipe: engine.problem for engine in cache.all_engines()}
    assert "manifest.json cannot be read" in problems["a"]
    assert "bound weights are damaged" in problems["b"]
    cache.prune()
    assert cache.all_engines() == []
    assert list(cache.weights.entries()) == []


def test_nothing_there(cache: BuildCache) -> None:
    assert cache.all_engines() == []
    assert cache.prune(everything=True).removed == ()


def test_prune_by_age_keeps_shared_weights(cache: BuildCache) -> None:
    now = time.time()
    old = put(cache, "old", PARTS, "shared", used=now - 40 * 86400)
    put(cache, "new", PARTS | {"dtype": "bf16"}, "shared", used=now)
    older = put(cache, "older", PARTS | {"dtype": "x"}, "own", used=now - 50 * 86400)
    pruned = cache.prune(older_than_days=30)
    assert set(pruned.removed) >= {old.folder, older.folder}
    assert len(pruned.removed) == 3  # and the weights of the oldest
    assert pruned.freed_bytes >= 4 << 20
    assert [engine.recipe for engine in cache.all_engines()] == ["new"]
    assert [f.name.rpartition("-")[2] for f, _ in cache.weights.entries()] == [
        key_of({"w": "shared"})
    ]


def test_prune_by_size_counts_shared_weights_once(cache: BuildCache) -> None:
    now = time.time()
    for i, weights in enumerate(("one", "one", "two")):  # 3, 1 and 3 MiB
        put(cache, f"r{i}", PARTS | {"dtype": str(i)}, weights, used=now - i * 100)
    cache.prune(keep_gib=4.5 / 1024)
    assert [engine.recipe for engine in cache.all_engines()] == ["r0", "r1"]
    cache.prune(keep_gib=0)
    assert cache.all_engines() == []


def test_prune_refuses_nonsense(cache: BuildCache) -> None:
    for bound in (-1.0, float("nan")):
        with pytest.raises(RecipeError, match="keep_gib"):
            cache.prune(keep_gib=bound)
        with pytest.raises(RecipeError, match="older_than_days"):
            cache.prune(older_than_days=bound)


def test_prune_everything(cache: BuildCache) -> None:
    put(cache, "a", PARTS, "a")
    assert len(cache.prune(everything=True).removed) == 2
    assert cache.all_engines() == []
