"""What is inside a built engine: its modules and their ops, its weights, kernels and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, cast

from paddock.engines.protocol import InspectableEngine
from paddock.graph import Graph
from paddock.graph.ops import CacheBlocks, StateSlots, Weight
from paddock.graph.tensor import fixed
from paddock.recipes import engine_kinds
from paddock.recipes.build_cache import BuildCache, weights_keys
from paddock.recipes.builder import rank_folder
from paddock.recipes.errors import RecipeError
from paddock.recipes.shelf import DamagedError, Entry
from paddock.weights.bound import BoundWeights


@dataclass
class ModuleReport:
    """A module of the model: what it does itself, and the modules in it."""

    name: str
    ops: dict[str, int] = field(default_factory=dict)
    weights: list[WeightReport] = field(default_factory=list)
    weight_bytes: int = 0
    """Its own and those of the modules in it."""
    modules: list[ModuleReport] = field(default_factory=list)


@dataclass(frozen=True)
class WeightReport:
    """A slot as this engine stores it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class RankReport:
    """One rank's part of an engine."""

    model: ModuleReport
    ops: dict[str, int]
    kernels: dict[str, int]
    """Names by the compiler, and how often each is there; empty where they were not asked for."""
    weight_bytes: int
    cache_bytes_per_token: int
    """Keys and values of one token in the graph's own type; u8 caches take less."""
    state_bytes_per_sequence: int
    files: dict[str, int]
    """The engine's own files, in bytes."""


@dataclass(frozen=True)
class Inspection:
    """An engine as its folder describes it."""

    folder: str
    recipe: str
    facts: dict[str, str]
    check: dict[str, Any] | None
    """How far a build was from the reference engine."""
    ranks: list[RankReport]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(entry: Entry, *, kernels: bool = True) -> Inspection:
    """Read an engine's folder; `kernels` asks the engine for them, which may open it once.

    Raises `BuildError`, `WeightError`, and `RecipeError` where the folder says too little.
    """
    manifest = entry.manifest
    try:
        engine, mesh = dict(manifest["engine"]), manifest["mesh"]
        count = int(mesh["tp"]) * int(mesh["pp"])
        checkpoint = manifest["checkpoint"]
        parts = manifest["key_parts"]
        facts = {
            "architecture": str(manifest["architecture"]),
            "checkpoint": str(checkpoint["repo"] or checkpoint["name"]),
            "engine": str(engine["version"]),
            "arithmetic": str(parts["dtype"]),
            "quantization": str(parts["quant"]),
            "target": str(parts["target"]),
            "longest sequence": f"{manifest['max_context']} tokens",
            "mesh": f"tp={mesh['tp']} pp={mesh['pp']}",
        }
        for part in ("limits", "weights in the plan"):  # of engines that compile for sizes
            if part in parts:
                facts[part] = str(parts[part])
        if count > 1:
            kernels = False  # ranks open together, not one alone
        kind = engine_kinds.load(str(engine["name"]))
        options = {key: value for key, value in engine.items() if key not in ("name", "version")}
        folders = _weights_folders(manifest) if kernels else [None] * count
        ranks = [
            _rank(
                cast(InspectableEngine, kind.load(entry.folder / rank_folder(rank))),
                entry.folder / rank_folder(rank),
                _open(folders[rank], rank, checkpoint["folder"]),
                options,
            )
            for rank in range(count)
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RecipeError(
            f"{entry.folder}: its manifest is not complete ({type(error).__name__}: {error});"
            " build the engine again"
        ) from None
    return Inspection(
        str(entry.folder), str(manifest["recipe"]), facts, manifest.get("check"), ranks
    )


def _weights_folders(manifest: Mapping[str, Any]) -> list[Path | None]:
    """Where each rank's bound weights lie; None where they are gone."""
    shelf = BuildCache().weights
    found: list[Path | None] = []
    for key in weights_keys(manifest):
        try:
            entry = shelf.find(key)
        except DamagedError:
            entry = None
        found.append(entry.folder if entry else None)
    return found


def _open(folder: Path | None, rank: int, checkpoint: str) -> BoundWeights | None:
    return BoundWeights.open(folder / rank_folder(rank), Path(checkpoint)) if folder else None


def _rank(
    engine: InspectableEngine,
    folder: Path,
    weights: BoundWeights | None,
    options: Mapping[str, Any],
) -> RankReport:
    graph = engine.graph
    model = modules_of(graph)
    return RankReport(
        model=model,
        ops=graph.count_ops(),
        kernels=engine.kernels(weights, options) if weights is not None else {},
        weight_bytes=model.weight_bytes,
        cache_bytes_per_token=sum(
            prod(fixed(op.shape[2:])) * graph.dtype.bits // 8
            for node in graph.find(CacheBlocks)
            if isinstance(op := node.op, CacheBlocks)
        ),
        state_bytes_per_sequence=sum(
            prod(fixed(op.shape[1:])) * node.outputs[0].type.dtype.bits // 8
            for node in graph.find(StateSlots)
            if isinstance(op := node.op, StateSlots)
        ),
        files={f.name: f.stat().st_size for f in sorted(folder.iterdir()) if f.is_file()},
    )


def modules_of(graph: Graph) -> ModuleReport:
    """The module tree that the graph was traced from, by the paths of its nodes."""
    root = ModuleReport("")
    by_path = {"": root}

    def module(path: str) -> ModuleReport:
        if path not in by_path:
            outer, _, name = path.rpartition(".")
            by_path[path] = ModuleReport(name)
            module(outer).modules.append(by_path[path])
        return by_path[path]

    for node in graph.nodes:
        if isinstance(node.op, Weight):
            type_ = node.outputs[0].type
            shape = fixed(type_.shape)
            nbytes = prod(shape) * type_.dtype.bits // 8
            weight = WeightReport(node.op.key, str(type_.dtype), shape, nbytes)
            module(node.path).weights.append(weight)
        else:
            ops = Counter(module(node.path).ops)
            ops[node.op.name] += 1
            module(node.path).ops = dict(ops)
    _sum_up(root)
    return root


def _sum_up(module: ModuleReport) -> int:
    module.weight_bytes = sum(weight.nbytes for weight in module.weights)
    module.weight_bytes += sum(map(_sum_up, module.modules))
    return module.weight_bytes


def folded(modules: list[ModuleReport]) -> Iterator[tuple[list[ModuleReport], ModuleReport]]:
    """Neighbours that are alike but for their names, together with the first of them."""
    run: list[ModuleReport] = []
    for module in modules:
        if run and not _alike(run[0], module):
            yield run, run[0]
            run = []
        run.append(module)
    if run:
        yield run, run[0]


def _alike(one: ModuleReport, other: ModuleReport) -> bool:
    numbered = one.name.isdecimal() and other.name.isdecimal()
    return numbered and _shape(one) == _shape(other)


def _shape(module: ModuleReport) -> tuple[Any, ...]:
    """All but the module's own name."""
    return (
        tuple(sorted(module.ops.items())),
        tuple((w.dtype, w.shape) for w in module.weights),
        tuple((inner.name, _shape(inner)) for inner in module.modules),
    )
