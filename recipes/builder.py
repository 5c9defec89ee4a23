"""Find an engine in the build cache, or build it, check it and publish it there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

from paddock.engines.protocol import (
    BuildError,
    CompiledEngine,
    CompilingKind,
    Engine,
    EngineKind,
    Rounding,
)
from paddock.engines.reference.rounding import rounded
from paddock.graph import DType, Graph, Mesh
from paddock.graph.ops import Weight, scale_name
from paddock.graph.tensor import fixed
from paddock.recipes import verify
from paddock.recipes.build_cache import BuildCache
from paddock.recipes.build_key import differences, graph_hash, key_of
from paddock.recipes.check_ranks import RanksCheck
from paddock.recipes.content import source_hash
from paddock.recipes.machine import measure
from paddock.recipes.progress import Progress
from paddock.recipes.schema import Recipe
from paddock.recipes.shelf import DamagedError, Entry, Manifest
from paddock.recipes.tracing import Traced, trace_graph, vocab_size
from paddock.recipes.version import installed_version
from paddock.weights import Binding, Checkpoint
from paddock.weights.bound import BoundWeights
from paddock.weights.errors import WeightError
from paddock.weights.hub import LocalCheckpoint
from paddock.weights.write import write

Result = TypeVar("Result")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
CODE_OF_GRAPHS = ("paddock.graph", "paddock.engines.protocol")
CODE_OF_WEIGHTS = tuple(
    f"paddock.weights.{part}" for part in ("bind", "bound", "locate", "quantize", "source", "write")
)

# Bytes of the checkpoint a second: binding is bound by reading and hashing, and in int4 by the
# search for each group's scale. Two cores, a checkpoint that is not in memory yet.
BINDING_BYTES_S = {"none": 4e8, "int8": 2e8, "fp8": 2e8, "int4": 3e7}
WEIGHTS_IN_PLAN = "weights in the plan"  # a part of the key of engines that compile
FED, EXCHANGEABLE = "external", "refittable"  # its values of which a plan takes other weights
CHUNKS_BYTES = 64 << 20  # what binding a rank holds at least
GRAPH_BYTES = 215  # of a node in a graph's file
COMPILING_S = 0.1  # for each layer: lowering, compiling twice (for the check, and to serve)


@dataclass(frozen=True)
class Done:
    """What a recipe asked for."""

    engine: Entry
    weights: list[Entry]
    """One a rank."""
    made: bool
    """The engine was built now."""
    reasons: list[str]
    """Why; empty where it was there."""


@dataclass(frozen=True)
class Estimate:
    """What a build takes, known before any of the checkpoint's data is read."""

    read_bytes: int
    """Of the checkpoint."""
    weights_bytes: int
    """Bound weights on disk; what equals the checkpoint byte for byte is not copied."""
    engine_bytes: int
    """The engine's own files on disk."""
    memory_bytes: int
    seconds: float


class Builder:
    """One engine: what it is made from, and the parts of its key.

    `ranks` are the model as each rank computes it; `prove` gives a rank's binding, once it is
    needed; `options` are the engine's.
    """

    def __init__(
        self,
        recipe: Recipe,
        kind: EngineKind,
        checkpoint: LocalCheckpoint,
        ranks: Sequence[Traced],
        cache: BuildCache,
        *,
        prove: Callable[[int], Binding],
        options: Mapping[str, Any],
        progress: Progress,
        timings: dict[str, float],
    ) -> None:
        self.recipe, self.kind, self.checkpoint = recipe, kind, checkpoint
        self.ranks, self.traced = list(ranks), ranks[0]
        self.cache, self.options, self.progress, self.timings = cache, options, progress, timings
        self._prove = prove
        content = self._content()
        self.weights_parts = [self._parts_of_weights(content, rank) for rank in self.ranks]
        self.weights_keys = [key_of(parts) for parts in self.weights_parts]
        self.parts = self._parts_of_engine(content)
        self.key = key_of(self.parts)

    def obtain(self, *, rebuild: bool = False) -> Done:
        """Engine and weights, from the cache where they are in order."""
        with timed(self.timings, "look up"):
            engine, reasons = self._find_engine()
            weights = [self._find_weights(rank) for rank in range(len(self.ranks))]
        if rebuild:
            engine, reasons = None, ["it was asked for"]
        if engine is None:
            self.progress.note(f"building {self.recipe.name}: {'; '.join(reasons)}")
            return self._build(reasons, again=rebuild)
        why = next((why for entry, why in weights if entry is None), None)
        if why is not None:
            self.progress.note(f"binding the weights of {self.recipe.name} again: {why}")
        bound = self._bind_missing()
        engine.touch()
        return Done(engine, bound, made=False, reasons=[])

    def refit(self, donor: Entry) -> Done:
        """The same with what `donor` compiled, which other weights are given to.

        Raises `BuildError` where more than the checkpoint's weights differs, before any is read.
        """
        self._require_refittable(donor)
        with timed(self.timings, "look up"):
            engine, _ = self._find_engine()
        if engine is not None:
            return Done(engine, self._bind_missing(), made=False, reasons=[])
        engine, made = self.cache.engines.make(
            self.key,
            self.recipe.name,
            lambda folder: self._write_engine(folder, donor),
            note=self.progress.note,
        )
        return Done(engine, self._bind_missing(), made, [f"refitted from {donor.folder.name}"])

    def _require_refittable(self, donor: Entry) -> None:
        old = donor.manifest.get("key_parts")
        old = old if isinstance(old, dict) else {}
        changed = {name for name in {*old, *self.parts} if old.get(name) != self.parts.get(name)}
        advice = (
            f"build it instead: paddock build {self.recipe.name}"
            f" checkpoint={self.recipe.checkpoint}"
        )
        how = self.parts.get(WEIGHTS_IN_PLAN, FED)
        if how not in (FED, EXCHANGEABLE):
            raise BuildError(
                f"{donor.folder.name}: its weights are constants of the plan (engine.weights="
                f"{how}), and only weights that are fed, or {EXCHANGEABLE}, can be exchanged;"
                f" {advice}"
            )
        config = self.traced.architecture.config.model_dump(mode="json", exclude_none=True)
        before = donor.manifest.get("config")
        if "graph" in changed and isinstance(before, dict):
            told = [
                f"{name}: was {before.get(name)}, now {config.get(name)}"
                for name in {**before, **config}
                if before.get(name) != config.get(name)
            ]
            raise BuildError(
                f"{self.recipe.checkpoint} is another model than {donor.folder.name} was built"
                f" from: {'; '.join(told) or 'the graph changed'}; {advice}"
            )
        if how == EXCHANGEABLE:
            held = cast(CompiledEngine, self.kind.load(donor.folder / rank_folder(0)))
            reason = held.why_not_here()
            if reason is not None:
                raise BuildError(
                    f"{donor.folder.name}: its plan cannot be given other weights here: {reason}"
                )
        others = changed - {"checkpoint", "weights"}
        if others:
            told = differences(
                {k: v for k, v in old.items() if k in others},
                {k: v for k, v in self.parts.items() if k in others},
            )
            raise BuildError(
                f"{donor.folder.name} differs in more than its weights: {'; '.join(told)}; {advice}"
            )

    def _find_engine(self) -> tuple[Entry | None, list[str]]:
        try:
            entry = self.cache.engines.find(self.key)
        except DamagedError as error:
            return None, [f"the engine that was there is damaged: {error}"]
        if entry is None:
            return None, self.cache.why_missing(self.recipe.name, self.parts)
        if self.recipe.verify and entry.manifest.get("check") is None:
            return None, ["the engine that is there was never checked (verify=false)"]
        return entry, []

    def _find_weights(self, rank: int) -> tuple[Entry | None, str]:
        """A rank's bound weights that can be opened, or why there are none."""
        try:
            entry = self.cache.weights.find(self.weights_keys[rank])
            if entry is None:
                return None, "they were deleted"
            self._open(entry, rank)
        except (DamagedError, WeightError) as error:
            return None, str(error)
        return entry, ""

    def _build(self, reasons: list[str], *, again: bool) -> Done:
        unchecked = self.recipe.verify and not again
        with suppress(DamagedError):
            found = self.cache.engines.find(self.key)
            again = again or (unchecked and found is not None and not found.manifest.get("check"))
        engine, made = self.cache.engines.make(
            self.key, self.recipe.name, self._write_engine, note=self.progress.note, again=again
        )
        weights = self._bind_missing()
        engine.touch()
        return Done(engine, weights, made, reasons if made else [])

    def _write_engine(self, folder: Path, donor: Entry | None = None) -> Manifest:
        """Bind, lower, check: the engine's own files into an empty folder, and its manifest.

        With a `donor` nothing is lowered: what it holds is copied.
        """
        began = time.perf_counter()
        weights = [self._open(entry, rank) for rank, entry in enumerate(self._bind_missing())]
        if donor is None:
            with timed(self.timings, "compile"):
                self._compile_ranks(folder, weights)
        else:
            with timed(self.timings, "copy"):
                for rank in range(len(self.ranks)):
                    self._refit_rank(donor.folder, folder, rank, weights[rank])
        check = None
        if self.recipe.verify:
            with timed(self.timings, "check"):
                if len(self.ranks) == 1:
                    check = self._check(folder / rank_folder(0), weights[0])
                else:
                    check = self._check_ranks(folder, weights)
        config = self.traced.architecture.config
        return {
            "recipe": self.recipe.name,
            "settings": self.recipe.model_dump(mode="json"),
            "paddock": installed_version(),
            "engine": {"name": self.kind.NAME, "version": self.kind.version(), **self.options},
            "architecture": self.traced.architecture.name,
            "config": config.model_dump(mode="json", exclude_none=True),
            "max_context": self.traced.context.tokens,
            "mesh": {
                "tp": self.traced.mesh.tp,
                "pp": self.traced.mesh.pp,
                "stages": [
                    len(stage.mesh.stage(stage.layers))
                    for stage in self.ranks[:: self.traced.mesh.tp]
                ],
            },
            "checkpoint": {
                "name": self.recipe.checkpoint,
                "folder": str(self.checkpoint.folder),
                "repo": self.checkpoint.repo,
                "commit": self.checkpoint.commit,
            },
            "tokenizer": self._tokenizer_files(),
            "weights": self.weights_keys,
            "weight_bytes": sum(map(_weight_bytes, self.ranks)),
            "check": check.as_manifest() if check else None,
            "key_parts": self.parts,
            "seconds": round(time.perf_counter() - began, 2),
        }

    def _refit_rank(self, donor: Path, folder: Path, rank: int, weights: BoundWeights) -> None:
        """What a donor compiled for one rank, with these weights where it holds some."""
        place = rank_folder(rank)
        if self.parts.get(WEIGHTS_IN_PLAN) != EXCHANGEABLE:
            shutil.copytree(donor / place, folder / place)
            return
        refitted = cast(CompiledEngine, self.kind.load(donor / place)).refitted(weights)
        (folder / place).mkdir()
        refitted.save(folder / place)

    def _compile_ranks(self, folder: Path, weights: Sequence[BoundWeights]) -> None:
        """Each rank's part, several at a time as far as the memory allows."""

        def compile_rank(rank: int) -> None:
            place = folder / rank_folder(rank)
            place.mkdir()
            self._compiled(self.ranks[rank], weights[rank]).save(place)

        # A compiler may hold a rank's weights, and a copy in the order that its kernels like.
        self._for_each_rank(compile_rank, 2 * max(map(_weight_bytes, self.ranks)))

    def _compiled(self, rank: Traced, weights: BoundWeights) -> Engine:
        compiler = self._compiler
        self.progress.update("compile", 0, 1 if compiler else None, "")
        if compiler is None:
            engine = self.kind.build(rank.graph, self.options)
        else:
            engine = compiler.compile(
                rank.graph,
                self.options,
                weights=weights,
                progress=lambda done, total: self.progress.update("compile", done, total, ""),
            )
        self.progress.update("compile", 1, 1, "")
        return engine

    @property
    def _compiler(self) -> CompilingKind | None:
        """The kind, if it is one that compiles."""
        return cast(CompilingKind, self.kind) if self.kind.CAPABILITIES.compiles else None

    def _bind_missing(self) -> list[Entry]:
        """Every rank's bound weights, made where they are not there."""
        ranks = range(len(self.ranks))
        found = [self._find_weights(rank)[0] for rank in ranks]
        missing = [rank for rank in ranks if found[rank] is None]
        if missing:
            with timed(self.timings, "prove"):
                bindings = {rank: self._prove(rank) for rank in missing}
            self._announce(bindings)
            with timed(self.timings, "bind"):
                made = self._for_each_rank(
                    lambda i: self._bind(missing[i], bindings[missing[i]]),
                    max(CHUNKS_BYTES, self._largest_slot_bytes()),
                    count=len(missing),
                )
            for rank, entry in zip(missing, made, strict=True):
                found[rank] = entry
        entries = [entry for entry in found if entry is not None]
        for entry in entries:
            entry.touch()
        return entries

    def estimate(self) -> Estimate:
        """What a build takes, nothing of it being there yet. Proves the binding of every rank."""
        return self._estimate({rank: self._prove(rank) for rank in range(len(self.ranks))})

    def _estimate(self, bindings: Mapping[int, Binding]) -> Estimate:
        sizes = [self._bytes_to_bind(rank, binding) for rank, binding in bindings.items()]
        read, written = (sum(column) for column in zip(*sizes, strict=True))
        seconds = read / BINDING_BYTES_S[self.recipe.quant.weights]
        held = 2 * sum(map(_weight_bytes, self.ranks))
        if self._compiler is None:
            seconds += COMPILING_S * self.traced.layers
            disk = sum(GRAPH_BYTES * len(rank.graph.nodes) for rank in self.ranks)
        else:
            compiling = [
                self._compiler.estimate(rank.graph, self.options, _weight_bytes(rank))
                for rank in self.ranks
            ]
            seconds += sum(one.seconds for one in compiling)
            disk = sum(one.disk_bytes for one in compiling)
            held = max(held, *(one.memory_bytes for one in compiling))
        return Estimate(read, written, disk, held, seconds)

    def _announce(self, bindings: Mapping[int, Binding]) -> None:
        """Say what the build takes. Raises `BuildError` where the disk has no room for it."""
        estimate = self._estimate(bindings)
        self.cache.require_space(estimate.weights_bytes, f"{self.recipe.name}: the bound weights")
        self.progress.note(
            f"it reads {_size(estimate.read_bytes)} of checkpoint, writes"
            f" {_size(estimate.weights_bytes + estimate.engine_bytes)} to"
            f" {self.cache.root}, needs about {_size(estimate.memory_bytes)} of memory and"
            f" {_duration(estimate.seconds)}"
        )

    def _bind(self, rank: int, binding: Binding) -> Entry:
        """One rank's bound weights, shared by all engines of their key."""

        def write_weights(folder: Path) -> Manifest:
            place = folder / rank_folder(rank)
            place.mkdir()
            told = write(
                binding,
                place,
                self.traced.dtype,
                progress=lambda done, total: self.progress.update("bind", done, total, "bytes"),
                threads=max(1, measure().cores // self._at_once) if self._at_once > 1 else None,
            )
            if told["nonfinite"]:
                names = told["nonfinite"]
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                self.progress.note(
                    f"warning: {names[0]}{more}: weights are NaN or infinite; what the model"
                    " writes is not to be relied on"
                )
            return {
                "key_parts": self.weights_parts[rank],
                "content": told["content"],
                "nonfinite": told["nonfinite"],
                "referenced_bytes": told["referenced_bytes"],
            }

        name = self.checkpoint.repo or self.checkpoint.folder.name or "checkpoint"
        entry, _ = self.cache.weights.make(
            self.weights_keys[rank],
            "".join(c if c.isalnum() or c in "._" else "-" for c in name),
            write_weights,
            note=self.progress.note,
            again=True,
        )
        return entry

    def _for_each_rank(
        self, make: Callable[[int], Result], bytes_each: int, count: int | None = None
    ) -> list[Result]:
        """`make` for each of `count` ranks; as many at a time as there are cores and memory."""
        count = len(self.ranks) if count is None else count
        machine = measure()
        fitting = int(machine.free_bytes * 0.8) // max(bytes_each, 1)
        self._at_once = max(1, min(count, machine.cores, fitting))
        if self._at_once == 1:
            return [make(i) for i in range(count)]
        with ThreadPoolExecutor(self._at_once) as threads:
            return list(threads.map(make, range(count)))

    def _largest_slot_bytes(self) -> int:
        """Of f32 values: what one thread may hold at once of a slot that is read whole."""
        return max(4 * prod(slot.shape) for _, slot in self.traced.module.named_parameters())

    def _check_ranks(self, folder: Path, weights: Sequence[BoundWeights]) -> verify.Check:
        """The same of several ranks, as threads of this process."""
        self.progress.update("check", 0, None, "")
        cut = self._retraced(DType.F32, verify.CUT_LAYERS)
        layers = verify.layers_to_check(
            verify.f32_bytes(self.traced.module),
            verify.f32_bytes(cut.module),
            self.traced.layers,
            measure().free_bytes,
        )
        check = RanksCheck(
            self.kind,
            self.options,
            self.ranks,
            [folder / rank_folder(rank) for rank in range(len(self.ranks))],
            weights,
            self._traced_anew,
        ).run(layers, self._vocab_size)
        self.progress.update("check", 1, 1, "")
        of = "" if layers == self.traced.layers else f" of {self.traced.layers}"
        self.progress.note(
            f"checked against the reference engine: {len(self.ranks)} ranks, {layers}{of} layers,"
            f" logits {check.error:.1e} away ({check.rounding:.1e} by rounding alone)"
        )
        return check

    def _traced_anew(self, dtype: DType, layers: int, mesh: Mesh, quantized: bool) -> Traced:
        """The first layers alone, as a rank of another mesh computes them."""
        return trace_graph(
            self.recipe,
            self.traced.architecture,
            dtype,
            mesh=mesh,
            layers=min(layers, self.traced.layers),
            quantized=quantized,
        )

    def _check(self, place: Path, weights: BoundWeights) -> verify.Check | None:
        """Compare what was just saved with the reference, as far as that fits into memory."""
        if self.kind.NAME == "reference":
            return verify.Check(
                self.traced.layers, 0.0, 0.0, 0.0
            )  # it is what others are held against
        self.progress.update("check", 0, None, "")
        cut = self._retraced(DType.F32, verify.CUT_LAYERS)
        layers = verify.layers_to_check(
            verify.f32_bytes(self.traced.module),
            verify.f32_bytes(cut.module),
            self.traced.layers,
            measure().free_bytes,
        )
        engine = self.kind.load(place)
        compiler = self._compiler
        absent = cast(CompiledEngine, engine).why_not_here() if compiler else None
        if layers < self.traced.layers:
            # All layers run and give numbers; the first few of them, the right ones.
            if absent is None:
                session = engine.open(weights, self.options)
                try:
                    verify.run(session, verify.Asked.of(self.traced.graph, self._vocab_size))
                finally:
                    session.close()
            if layers:
                fewer = self._retraced(self.traced.dtype, layers).graph
                engine = (
                    self.kind.build(fewer, self.options)
                    if absent is None or compiler is None
                    else compiler.define(fewer, self.options)
                )
        if not layers:
            runs = "runs, but is" if absent is None else "is"
            self.progress.note(
                f"the build {runs} not compared with the reference engine: that would take"
                f" {_size(verify.f32_bytes(cut.module))} of memory for {verify.CUT_LAYERS} layers"
            )
            return verify.Check(0, 0.0, 0.0, 0.0)
        exact = cut if layers == cut.layers else self._retraced(DType.F32, layers)
        expected = verify.Expected(exact.graph, self._rounded(exact), weights, self._vocab_size)
        session = (
            engine.open(weights, self.options)
            if absent is None
            else cast(CompiledEngine, engine).open_interpreted(weights)
        )
        try:
            check = expected.check(session, layers=layers)
        finally:
            session.close()
            self.progress.update("check", 1, 1, "")
        of = "" if layers == self.traced.layers else f" of {self.traced.layers}"
        if absent is not None:
            self.progress.note(f"it cannot run here: {absent}")
            what = "what was compiled, evaluated in NumPy: "
        else:
            what = ""
        explained = f" ({check.rounding:.1e} by rounding alone)" if check.rounding else ""
        self.progress.note(
            f"checked against the reference engine: {what}{layers}{of} layers, logits"
            f" {check.error:.1e} away{explained}"
        )
        return check

    def _rounded(self, exact: Traced) -> Graph | None:
        """The graph of a check with the engine's rounding, or None where it is f32 throughout."""
        rounding = self.kind.CAPABILITIES.rounding(self.traced.graph, self.options)
        if rounding == Rounding(DType.F32):
            return None
        coarse = self._retraced(rounding.dtype, exact.layers)
        return rounded(coarse.graph, rounding)

    def _retraced(self, dtype: DType, layers: int) -> Traced:
        """The same model with its first layers alone."""
        fewer = min(layers, self.traced.layers)
        return trace_graph(self.recipe, self.traced.architecture, dtype, layers=fewer)

    @property
    def _vocab_size(self) -> int | None:
        """Where the output is hidden states or labels, and its width says nothing."""
        writes = self.traced.architecture.task == "generate"
        return None if writes else vocab_size(self.traced.architecture)

    def _open(self, weights: Entry, rank: int) -> BoundWeights:
        return BoundWeights.open(weights.folder / rank_folder(rank), self.checkpoint.folder)

    def _content(self) -> str:
        """What the checkpoint's weights are: a commit of the hub, or the hash of its files."""
        if self.checkpoint.repo and self.checkpoint.commit:
            return f"{self.checkpoint.repo}@{self.checkpoint.commit}"
        files = [file.path for file in Checkpoint.open(self.checkpoint.folder).files]
        hashes = self.cache.hashes.of(
            files, lambda done, total: self.progress.update("hash", done, total, "bytes")
        )
        return key_of({f.name: digest for f, digest in zip(files, hashes, strict=True)})

    def _parts_of_weights(self, content: str, rank: Traced) -> dict[str, str]:
        slots = [
            f"{name} {list(slot.shape)} {slot.dtype} {slot.quant} {slot.shard}"
            for name, slot in rank.module.named_parameters()
            if name in rank.weights
        ]
        return {
            "checkpoint": content,
            "slots": key_of({"slots": "\n".join(slots)}),
            "dtype": str(self.traced.dtype),
            "mesh": str(rank.mesh),
            **({"rank": str(rank.mesh.rank)} if rank.mesh.size > 1 else {}),
            "code": source_hash(*CODE_OF_WEIGHTS, self.traced.architecture.weight_map),
        }

    def _parts_of_engine(self, content: str) -> dict[str, str]:
        """Causes before consequences: what changed is told in this order."""
        quant = self.recipe.quant
        of_engine = source_hash(f"paddock.engines.{self.kind.NAME}")[:8]
        formats = f"{quant.weights} group={quant.group} head={quant.head} skip={list(quant.skip)}"
        return {
            "checkpoint": content,
            "engine": f"{self.kind.NAME} ({self.kind.version()}, code {of_engine})",
            "target": measure().arch,
            "dtype": str(self.traced.dtype),
            "quant": "none" if quant.weights == "none" else formats,
            "cache_dtype": self.recipe.engine.cache_dtype,
            "mesh": str(self.traced.mesh),
            "plugins": " ".join(f"{p}:{source_hash(p)}" for p in self.recipe.plugins),
            "code": source_hash(*CODE_OF_GRAPHS),
            "graph": _joined([graph_hash(rank.graph) for rank in self.ranks]),
            "weights": _joined(self.weights_keys),
            **(self._compiler.key_parts(self.traced.graph, self.options) if self._compiler else {}),
        }

    def _bytes_to_bind(self, rank: int, binding: Binding) -> tuple[int, int]:
        """What is read of the checkpoint for a rank, and what is written."""
        read = written = 0
        dtype = self.traced.dtype
        stored = self.ranks[rank].weights
        for name, slot in binding.slots.items():
            tensors = [part.tensor() for part in slot.parts]
            for part in slot.parts:
                for tensor, box in part.source.boxes(part.box):
                    elements = prod(stop - start for start, stop in box)
                    read += elements * tensor.nbytes // max(prod(tensor.shape), 1)
            wanted = slot.dtype or dtype
            if slot.quant is None and all(t and t.graph_dtype is wanted for t in tensors):
                continue
            written += sum(
                _stored_bytes(stored[n]) for n in (name, scale_name(name)) if n in stored
            )
        return read, written

    def _tokenizer_files(self) -> dict[str, str]:
        """Name -> SHA-256 of what turns text into tokens and back."""
        files = [self.checkpoint.folder / name for name in TOKENIZER_FILES]
        files = [file for file in files if file.is_file()]
        return dict(zip((f.name for f in files), self.cache.hashes.of(files), strict=True))


def rank_folder(rank: int) -> str:
    """The name of a rank's part of an engine, and of its bound weights."""
    return f"rank-{rank}"


def _joined(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else key_of({str(i): key for i, key in enumerate(keys)})


def _weight_bytes(rank: Traced) -> int:
    """Of all that the rank's graph reads, as it is stored."""
    return sum(map(_stored_bytes, rank.weights.values()))


def _stored_bytes(weight: Weight) -> int:
    return prod(fixed(weight.shape)) * weight.dtype.bits // 8


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that it takes to `timings[stage]`."""
    began = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - began


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    return f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
