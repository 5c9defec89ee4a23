"""Hold a new build against the reference engine, on a short input, before it is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod, sqrt
from typing import Any

import numpy as np

from paddock.engines import reference
from paddock.engines.protocol import BuildError, Session, StepInputs, WeightSource
from paddock.graph import Array, DType, Graph, Module
from paddock.graph.ops import Weight
from paddock.weights.source import cast

WHOLE_BYTES = 1 << 30
"""Of f32 weights: models up to this (about 270 M parameters) are compared whole."""
CUT_LAYERS = 4
"""Of larger models, so many layers: every kind of layer of the families here is among them."""

# What a token's first 38 and another's 9 tokens make: a chunk, a chunk beside another sequence's
# prompt, a token of each. (sequence, new tokens) for each step.
STEPS: tuple[tuple[tuple[str, int], ...], ...] = (
    (("a", 24),),
    (("a", 14), ("b", 9)),
    (("b", 1), ("a", 1)),
)
BLOCKS = {"a": (5, 1, 3), "b": (4, 2, 0)}  # of up to 3 blocks each, in no order


@dataclass(frozen=True)
class Check:
    """What a comparison found."""

    layers: int
    """Compared; 0 where the reference would not fit into memory and the logits were only finite."""
    error: float
    """Of a row of logits: the norm of the difference over that of the reference's, the worst."""
    tolerance: float

    def as_manifest(self) -> dict[str, Any]:
        return {"layers": self.layers, "error": self.error, "tolerance": self.tolerance}


def tolerance(dtype: DType, *, quantized: bool, small_cache: bool, layers: int) -> float:
    """The largest error that rounding explains. A mistake in lowering gives errors around 1.

    Rounding errors of a residual network add up like a random walk: about ten roundings a layer,
    each of a unit roundoff, with a factor of four for what is unlike in real weights. f32 is
    bounded from below by exponentials that compilers approximate and by sums of thousands in
    another order. Integer weights let an engine round activations to 8 bits in groups too: about
    1 % of their size for each of a layer's four products, and more where a few are much larger
    than the rest, hence a factor of five; 8-bit caches do the same with keys and values.
    """
    roundoff = {DType.F64: 2.0**-53, DType.F32: 2.0**-24, DType.F16: 2.0**-11}.get(dtype, 2.0**-8)
    found = max(1e-3, 4 * roundoff * sqrt(10 * layers))
    if quantized:
        found += 5 * 0.01 * sqrt(4 * layers)
    if small_cache:
        found += 5 * 0.01 * sqrt(2 * layers)
    return min(found, 0.6)


def layers_to_check(whole_bytes: int, cut_bytes: int, layers: int, free_bytes: int) -> int:
    """How many layers the reference can be run for; bytes are those of f32 weights."""
    if whole_bytes <= min(WHOLE_BYTES, free_bytes // 2):
        return layers
    return min(CUT_LAYERS, layers) if cut_bytes <= free_bytes // 2 else 0


def compare(session: Session, graph: Graph, weights: WeightSource, allowed: float) -> float:
    """The error of a session against the f32 graph of the same model, run by the reference engine.

    Raises `BuildError` where it is beyond `allowed`.
    """
    exact = reference.build(graph, {}).open(_InTypesOf(graph, weights), {})
    try:
        expected = run(exact)
    finally:
        exact.close()
    worst = 0.0
    for found, wanted in zip(run(session), expected, strict=True):
        centred = wanted - wanted.mean(1, keepdims=True)
        difference = (found - found.mean(1, keepdims=True)) - centred
        rows = np.linalg.norm(difference, axis=1) / np.maximum(
            np.linalg.norm(centred, axis=1), 1e-30
        )
        worst = max(worst, float(rows.max()))
    if not worst <= allowed:  # NaN is not either
        raise BuildError(
            f"the engine does not compute what the model says: its logits are {worst:.2g} away from"
            f" the reference engine's (relative), rounding explains {allowed:.2g}. Nothing was"
            " published. Please report this; engine=reference computes it slowly, verify=false"
            " builds it unchecked"
        )
    return worst


def run(session: Session) -> list[Array]:
    """The logits of each of `STEPS`, of all tokens. Raises `BuildError` unless they are finite."""
    session.allocate_cache(1 + max(max(blocks) for blocks in BLOCKS.values()))
    found = []
    for step in steps(session.block_size, session.vocab_size):
        logits = np.array(session.run(step), np.float32)
        if logits.shape != (len(step.token_ids), session.vocab_size):
            raise BuildError(
                f"the engine gives logits {list(logits.shape)}, expected"
                f" {[len(step.token_ids), session.vocab_size]}"
            )
        if not np.isfinite(logits).all():
            raise BuildError(
                "the engine gives logits that are NaN or infinite; if the checkpoint's weights are"
                " finite, try dtype=f32, and please report this"
            )
        found.append(logits)
    return found


def steps(block_size: int, vocab_size: int) -> list[StepInputs]:
    """`STEPS` over tokens from all of the vocabulary."""
    drawn = np.random.default_rng(20).integers(0, vocab_size, 64)
    past = {"a": 0, "b": 0}
    made = []
    for sequences in STEPS:
        starts, block_starts = [0], [0]
        ids: list[int] = []
        positions: list[int] = []
        table: list[int] = []
        for name, count in sequences:
            first, last = past[name], past[name] + count
            ids += list(drawn[first:last] if name == "a" else drawn[63 - last : 63 - first])
            positions += range(first, last)
            table += BLOCKS[name][: ceil(last / block_size)]
            starts.append(len(ids))
            block_starts.append(len(table))
        made.append(
            StepInputs(
                token_ids=np.array(ids, np.int64),
                positions=np.array(positions, np.int64),
                sequence_starts=np.array(starts, np.int32),
                past_lengths=np.array([past[name] for name, _ in sequences], np.int32),
                block_table=np.array(table, np.int32),
                block_starts=np.array(block_starts, np.int32),
                logit_rows=np.arange(len(ids), dtype=np.int64),
            )
        )
        for name, count in sequences:
            past[name] += count
    return made


def f32_bytes(model: Module) -> int:
    """Of all its slots."""
    return sum(4 * prod(slot.shape) for _, slot in model.named_parameters())


class _InTypesOf:
    """Bound weights, floats converted to the types that a graph reads them in."""

    def __init__(self, graph: Graph, weights: WeightSource) -> None:
        self._weights = weights
        self._dtypes = {
            node.op.key: node.op.dtype for node in graph.nodes if isinstance(node.op, Weight)
        }

    def whole(self, name: str) -> Array:
        return self._converted(name, self._weights.whole)

    def part(self, name: str, part: str) -> Array:
        return self._converted(name, lambda slot: self._weights.part(slot, part))

    def stored(self, name: str, part: str = "") -> Array:
        return self._converted(name, lambda slot: self._weights.stored(slot, part))

    def _converted(self, name: str, read: Callable[[str], Array]) -> Array:
        array, wanted = read(name), self._dtypes[name]
        return cast(array, wanted) if wanted.is_float else array
