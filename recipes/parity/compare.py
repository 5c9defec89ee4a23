"""Align a model with its reference module by module, and find where they part."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from paddock.engines import reference
from paddock.engines.protocol import EngineKind, WeightSource
from paddock.graph import Array, DType
from paddock.layers import VocabHead
from paddock.recipes import engine_kinds, pipeline
from paddock.recipes.errors import RecipeError
from paddock.recipes.parity.difference import Difference, difference, relative_error
from paddock.recipes.parity.own_values import Passed, own_values
from paddock.recipes.parity.transformers_values import has_class, transformers_values
from paddock.recipes.schema import Recipe
from paddock.recipes.tracing import Traced, trace_graph, vocab_size
from paddock.weights import Binding, BoundPart, BoundWeights, write

Way: TypeAlias = Literal["in", "out"]
Find: TypeAlias = Callable[[str, Way], Array | None]
BLOCK = re.compile(r"\D*\.\d+|\d+")  # a path whose only number is its last word


@dataclass(frozen=True)
class Compared:
    """What passed into a module or out of it, beside what did in the reference."""

    path: str
    way: Way
    part: str
    """Of several outputs that share a weight, which; or empty."""
    error: float
    found: Array
    expected: Array

    @property
    def is_trunk(self) -> bool:
        """Whether all that came before passes here: into a block, out of it, out of the model."""
        return not self.path or BLOCK.fullmatch(self.path) is not None

    def __str__(self) -> str:
        what = f" ({self.part})" if self.part else " (input)" if self.way == "in" else ""
        return f"{self.path or 'output'}{what}"


@dataclass(frozen=True)
class Fault:
    """Where a model leaves its reference."""

    at: Compared
    """The first value that differs."""
    module: str
    """The module whose own mathematics or weights made it."""
    after: str
    """What agreed last before it, or empty."""
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """All that was compared, in the order in which it is computed."""

    architecture: str
    reference: str
    tokens: int
    values: tuple[Compared, ...]
    fault: Fault | None


def compare(
    recipe: Recipe,
    token_ids: Sequence[int] | int,
    tolerance: float,
    against: str = "auto",
    twin: str | None = None,
) -> Comparison:
    """Run a recipe's model, unbuilt, and its reference on the same tokens.

    `token_ids`: those, or how many to draw. `against`: "transformers", "f64" (the NumPy engine in
    double precision, which shares the model and the weight map: it finds faults of engines), or
    "auto" for the first that there is. `twin`: the class of transformers to take in the place of
    the one that config.json names. Raises `RecipeError`, and what a build raises.
    """
    checkpoint = pipeline.fetch(recipe)
    pipeline.import_plugins(recipe)
    architecture = pipeline.read_architecture(recipe, checkpoint)
    if architecture.reads_source or architecture.image_form is not None:
        beside = "a source" if architecture.reads_source else "images"
        raise RecipeError(
            f"{architecture.name} reads {beside} beside what it writes; compare runs decoders and"
            " encoders only"
        )
    theirs_name = twin or architecture.name
    known = has_class(theirs_name)
    if against == "transformers" and not known:
        raise RecipeError(
            f"transformers is not installed, or has no {theirs_name}; --reference f64"
            " compares with the NumPy engine instead"
        )
    dtype = pipeline.compute_type(recipe, pipeline.config_json(checkpoint))
    kind = engine_kinds.load(recipe.engine.name)
    traced = trace_graph(recipe, architecture, dtype)
    binding = pipeline.prove_binding(traced, checkpoint)
    tokens = _tokens(token_ids, vocab_size(architecture), traced.context.tokens)
    with tempfile.TemporaryDirectory(prefix="paddock-compare-") as scratch:
        weights = _bound(binding, Path(scratch) / "weights", checkpoint.folder, dtype)
        found = _own(traced, kind, weights, tokens, recipe)
        find: Find
        if known and against != "f64":
            theirs = transformers_values(checkpoint.folder, theirs_name, tokens)
            find, name = theirs.find, f"transformers {theirs.version} (f32)"
        else:
            exact = trace_graph(recipe, architecture, DType.F64, quantized=False)
            plain = pipeline.prove_binding(exact, checkpoint)
            wide = _bound(plain, Path(scratch) / "wide", checkpoint.folder, DType.F32)
            find, name = _of_own(_own(exact, reference, wide, tokens, recipe)), "reference (f64)"
            binding = Binding(binding.mesh, {}, ())  # modules are the same: no name is another
    values = tuple(_aligned(found, find, binding, _head(traced)))
    if not values:
        raise RecipeError(f"no module of {architecture.name} has its name in {name}")
    head_size = getattr(architecture.config, "head_dim", None)
    fault = find_fault(values, tolerance, head_size)
    return Comparison(architecture.name, name, len(tokens), values, fault)


def _tokens(asked: Sequence[int] | int, vocabulary: int, longest: int) -> Array:
    if isinstance(asked, int):
        asked = [int(i) for i in np.random.default_rng(0).integers(0, vocabulary, asked)]
    if not 1 <= len(asked) <= longest:
        raise RecipeError(f"{len(asked)} tokens, expected 1 to {longest}, the context's length")
    if min(asked) < 0 or max(asked) >= vocabulary:
        raise RecipeError(
            f"token ids must be 0 to {vocabulary - 1}, found {min(asked)} to {max(asked)}"
        )
    return np.array(asked, np.int64)


def _bound(binding: Binding, folder: Path, checkpoint: Path, dtype: DType) -> BoundWeights:
    folder.mkdir()
    write(binding, folder, dtype)
    return BoundWeights.open(folder, checkpoint)


def _own(
    traced: Traced, kind: EngineKind, weights: WeightSource, tokens: Array, recipe: Recipe
) -> list[Passed]:
    options = pipeline.engine_options(recipe) if kind is not reference else {}
    return own_values(
        traced.module,
        kind,
        weights,
        tokens,
        dtype=traced.dtype,
        max_context=traced.context.tokens,
        options=options,
    )


def _of_own(passed: Sequence[Passed]) -> Find:
    found: dict[tuple[str, Way], Array] = {}
    for p in passed:
        found.setdefault((p.path, p.way), np.concatenate(p.arrays, axis=1))
    return lambda path, way: found.get((path, way))


def _head(traced: Traced) -> str:
    """The path of the vocabulary head, whose output is the model's."""
    children = traced.module.children()
    return next((name for name, child in children if isinstance(child, VocabHead)), "")


# --- aligning -----------------------------------------------------------------------------------


def _aligned(passed: Sequence[Passed], find: Find, binding: Binding, head: str) -> list[Compared]:
    """Ours beside the reference's, where both have the module and as many columns."""
    compared = []
    for value in passed:
        joined = np.concatenate(value.arrays, axis=1)
        own = [(value.path, "", joined)]
        if not value.path:
            # Behind the head there may be a scale or a cap, which the reference's model has, too.
            own = [(head if find("", "out") is None else "", "", joined)]
        elif parts := _parts(value.path, binding):
            own = _by_part(value, parts, joined)
        for path, part, found in own:
            expected = find(path, value.way)
            if expected is not None and expected.shape == found.shape:
                error = relative_error(found, expected)
                compared.append(Compared(value.path, value.way, part, error, found, expected))
    return compared


def _parts(path: str, binding: Binding) -> tuple[BoundPart, ...]:
    slot = binding.slots.get(f"{path}.weight")
    return slot.parts if slot is not None else ()


def _by_part(
    value: Passed, parts: Sequence[BoundPart], joined: Array
) -> list[tuple[str, str, Array]]:
    """The reference's path and our columns of each tensor that a slot's parts come from.

    The path is that of the tensor, so it follows the weight map. Parts of one tensor are one
    output of the reference; a slot of which nothing is known but its module's name is one, too.
    """
    tensors = [{tensor.name for tensor, _ in part.source.boxes()} for part in parts]
    if not all(len(names) == 1 for names in tensors):
        return [(value.path, "", joined)]
    names = [min(some) for some in tensors]
    modules = [name.rpartition(".")[0] for name in names]
    if value.way == "in" or len(set(names)) == 1:
        return [(modules[0], "", joined)]
    if len(value.arrays) == len(parts) and len(set(names)) == len(names):
        return [
            (module, part.name, array)
            for module, part, array in zip(modules, parts, value.arrays, strict=True)
        ]
    return [(value.path, "", joined)]


# --- finding ------------------------------------------------------------------------------------


def find_fault(
    values: Sequence[Compared], tolerance: float, head_size: int | None = None
) -> Fault | None:
    """The first value beyond the tolerance from which on nothing comes right again.

    What differs before a place that all passes through, and that agrees, is only counted in
    another way there (an embedding scaled inside its module, say), and no fault; nor is what
    differs in the same place of a block that agrees.
    """
    trunk = [i for i, v in enumerate(values) if v.is_trunk]
    if values and len(values) - 1 not in trunk:
        trunk.append(len(values) - 1)
    stop = next((i for i in trunk if not values[i].error <= tolerance), None)
    if stop is None:
        return None
    start = max((i for i in trunk if i < stop), default=-1)
    meant = {_kin(v) for v in values[: start + 1] if not v.error <= tolerance}
    wrong = next(
        i
        for i in range(start + 1, stop + 1)
        if i == stop or (not values[i].error <= tolerance and _kin(values[i]) not in meant)
    )
    at = values[wrong]
    before = [v for v in values[max(start, 0) : wrong] if v.error <= tolerance]
    inside = at.path.rpartition(".")[0] if at.way == "in" else at.path
    in_attention = "att" in at.path
    return Fault(
        at=at,
        module=inside,
        after=str(before[-1]) if before else "",
        difference=difference(
            at.found, at.expected, tolerance, head_size=head_size if in_attention else None
        ),
    )


def _kin(value: Compared) -> tuple[str, Way, str]:
    """What values of the same place in all blocks have in common."""
    return re.sub(r"\d+", "*", value.path), value.way, value.part
