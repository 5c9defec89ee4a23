"""Hold a new build against the reference engine, on a short input, before it is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil, prod
from typing import Any

import numpy as np

from paddock.engines import reference
from paddock.engines.protocol import BuildError, Session, StepInputs, WeightSource
from paddock.graph import Array, Graph, Module
from paddock.graph.ops import (
    CacheBlocks,
    CrossAttention,
    FoldRows,
    Input,
    Route,
    StateSlots,
    Weight,
)
from paddock.weights.source import cast

WHOLE_BYTES = 1 << 30
"""Of f32 weights: models up to this (about 270 M parameters) are compared whole."""
TIMES = 3.0
"""The error that rounding makes, what an engine may be off."""
EXACT = 1e-3
"""What an engine may be off that rounds nothing but f32."""
LARGEST = 0.4
"""What an engine may be off however coarse it is: one that forgets its cache is off by 1."""
ROWS_WELL_ROUTED = 0.75
"""Of the rows of a model that routes tokens to experts, so many are held to what rounding explains:
where two experts are nearly as good, rounding chooses the other one, and the row is another."""
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
SOURCES = {"a": 29, "b": 7}
"""Tokens of what each is an answer to, where the model reads it with an encoder."""
FEATURES = "source_features"
PATCHES = "image_patches"
SOURCE_BLOCKS = {"a": (6, 8), "b": (7, 9)}
SLOTS = {"a": 2, "b": 0}


@dataclass(frozen=True)
class Check:
    """What a comparison found. Errors are relative, the root of the mean square over rows, or of
    rows that are routed to experts the median."""

    layers: int
    """Compared; 0 where the reference would not fit into memory and the logits were only finite."""
    error: float
    """Of the engine's logits."""
    rounding: float
    """Of the reference engine's own logits, when it rounds as the engine does."""
    share: float
    """Of what each row may be off, that which it is: of the worst row (or see `ROWS_WELL_ROUTED`);
    beyond 1 it is refused."""

    def as_manifest(self) -> dict[str, Any]:
        return asdict(self)


def allowed(rounding: Array, *, routed: bool = False) -> Array:
    """The largest error of each row of logits that rounding explains, from the error it makes.

    Engine and reference round other values, so the errors that this makes are of one size, in
    different directions. A row whose own comes out small by chance is allowed what rows have on
    average. In the demo's formats an engine takes up to 0.6 of this; one that mixes up cache blocks
    takes 6 times, one that counts a position wrong 1.8 times. f32 is bounded from below by
    exponentials that compilers approximate and by sums of thousands in another order.
    """
    return np.clip(TIMES * np.maximum(rounding, _mean(rounding, routed)), EXACT, LARGEST)


def layers_to_check(whole_bytes: int, cut_bytes: int, layers: int, free_bytes: int) -> int:
    """How many layers the reference can be run for; bytes are those of f32 weights."""
    if whole_bytes <= min(WHOLE_BYTES, free_bytes // 2):
        return layers
    return min(CUT_LAYERS, layers) if cut_bytes <= free_bytes // 2 else 0


@dataclass(frozen=True)
class Asked:
    """What a model is tried on, and what its output is."""

    vocab_size: int | None = None
    """Where the output is hidden states or labels, whose width is not the vocabulary's."""
    whole: bool = False
    """Nothing is kept: every step has sequences anew."""
    routed: bool = False
    """Tokens choose experts, and a few may choose others than exact arithmetic would."""
    sources: bool = False
    """An encoder reads what each sequence is an answer to."""
    features: int | None = None
    """It hears: so many numbers for each place of a source."""
    patch: int | None = None
    """It sees: so many numbers for each patch of an image."""
    folded: int = 1
    """Of so many patches it makes one row."""

    @staticmethod
    def of(graph: Graph, vocab_size: int | None) -> Asked:
        keeps = any(isinstance(n.op, CacheBlocks | StateSlots) for n in graph.nodes)
        routed = next(graph.find(Route), None) is not None
        sources = next(graph.find(CrossAttention), None) is not None
        fed = {n.op.key: n.outputs[0].type for n in graph.find(Input) if isinstance(n.op, Input)}
        features, patch = (
            fed[name].size(1) if name in fed else None for name in (FEATURES, PATCHES)
        )
        folds = [n.op.count for n in graph.find(FoldRows) if isinstance(n.op, FoldRows)]
        folded = prod(folds)
        return Asked(vocab_size, not keeps, routed, sources, features, patch, folded)

    @property
    def logits(self) -> bool:
        return self.vocab_size is None


class Expected:
    """What the reference engine computes from an f32 graph, and what an engine's rounding moves it.

    `rounded` is the same graph with that rounding put in (`reference.rounding`), or a session of
    it, which is closed; None where nothing but f32 is rounded.
    """

    def __init__(
        self,
        graph: Graph,
        rounded: Graph | Session | None,
        weights: WeightSource,
        vocab_size: int | None = None,
    ) -> None:
        self._asked = asked = Asked.of(graph, vocab_size)
        self.logits = _by_reference(graph, weights, asked)
        self.rounding = np.zeros(sum(map(len, self.logits)))
        if rounded is not None:
            if isinstance(rounded, Graph):
                coarse = _by_reference(rounded, weights, asked)
            else:
                coarse = _closed(rounded, asked)
            self.rounding = errors(coarse, self.logits, centred=asked.logits)

    def check(self, session: Session, *, layers: int) -> Check:
        """Raises `BuildError` where rounding does not explain what the session's logits are off."""
        found = errors(run(session, self._asked), self.logits, centred=self._asked.logits)
        routed = self._asked.routed
        shares = found / allowed(self.rounding, routed=routed)
        # The largest, or the least that so many rows do not exceed; NaN where there is one.
        share = float(np.quantile(shares, ROWS_WELL_ROUTED if routed else 1.0))
        check = Check(layers, _mean(found, routed), _mean(self.rounding, routed), share)
        if share <= 1:  # NaN is not
            return check
        if TIMES * check.rounding > LARGEST:
            raise BuildError(
                f"this format does not suit this checkpoint: its rounding alone moves logits by"
                f" {check.rounding:.2g} (relative), and a wrong engine could not be told from this"
                f" one, which is {check.error:.2g} away. Nothing was published. Choose a finer"
                " format (quant=none, dtype=f32, engine.cache_dtype=auto); verify=false builds it"
                " unchecked"
            )
        raise BuildError(
            f"the engine does not compute what the model says: its logits are {check.error:.2g}"
            f" away from the reference engine's (relative), {share:.1f} times what rounding"
            " explains. Nothing was published. Please report this; engine=reference computes it"
            " slowly, verify=false builds it unchecked"
        )


def _by_reference(graph: Graph, weights: WeightSource, asked: Asked) -> list[Array]:
    return _closed(reference.build(graph, {}).open(InTypesOf(graph, weights), {}), asked)


def _closed(session: Session, asked: Asked) -> list[Array]:
    """What a session computes, which is closed."""
    try:
        return run(session, asked)
    finally:
        session.close()


def errors(found: list[Array], expected: list[Array], *, centred: bool = True) -> Array:
    """Of each row of logits, the norm of the difference over that of the expected.

    Softmax does not see what is added to a whole row of logits, nor does this. Vectors and scores
    are not `centred`, and a row that is small by chance is allowed a tenth of what the largest is.
    """
    rows = []
    for mine, right in zip(found, expected, strict=True):
        if centred:
            mine = mine - mine.mean(1, keepdims=True)
            right = right - right.mean(1, keepdims=True)
        difference = mine - right
        norms = np.linalg.norm(right, axis=1)
        norms = np.maximum(norms, 1e-30 if centred else norms.max() / 10)
        rows.append(np.linalg.norm(difference, axis=1) / norms)
    return np.concatenate(rows)


def _mean(rows: Array, routed: bool = False) -> float:
    """The root of the mean square; where a few rows were routed otherwise, the median."""
    return float(np.median(rows) if routed else np.sqrt(np.square(rows).mean()))


def run(session: Session, asked: Asked | None = None) -> list[Array]:
    """The logits of each of `STEPS`, of all tokens. Raises `BuildError` unless they are finite."""
    asked = asked or Asked()
    blocks = [*BLOCKS.values(), *(SOURCE_BLOCKS.values() if asked.sources else ())]
    session.allocate_cache(1 + max(map(max, blocks)), 1 + max(SLOTS.values()))
    found = []
    vocab_size = asked.vocab_size or session.vocab_size
    for step in _asked_steps(session.block_size, vocab_size, asked):
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


def _asked_steps(block_size: int, vocab_size: int, asked: Asked) -> list[StepInputs]:
    made = steps(block_size, vocab_size, whole=asked.whole)
    if asked.patch is not None:
        made = [_seen(step, asked.patch, asked.folded) for step in made]
    if not asked.sources:
        return made
    made = [
        with_sources(step, [name for name, _ in sequences], block_size, vocab_size)
        for step, sequences in zip(made, STEPS, strict=True)
    ]
    if asked.features is None:
        return made
    return [_heard(step, asked.features) for step in made]


def _seen(step: StepInputs, size: int, folded: int) -> StepInputs:
    """The same where four tokens of each sequence that begins stand for an image.

    Later steps have no image.
    """
    begins = np.flatnonzero(step.past_lengths == 0)
    patches = 4 * folded
    count = patches * len(begins)
    rows = np.full(len(step.token_ids), -1)
    for image, sequence in enumerate(begins):
        first = step.sequence_starts[sequence] + 3
        rows[first : first + 4] = np.arange(4 * image, 4 * image + 4)
    random = np.random.default_rng(22)
    places = np.tile(np.arange(patches), len(begins))
    starts = (patches if count else 0) * np.arange(max(len(begins), 1) + 1, dtype=np.int32)
    return replace(
        step,
        image_patches=random.standard_normal((count, size), np.float32),
        image_positions=places,
        image_starts=starts,
        image_rows=rows,
        image_patch_rows=places // 4,
        image_patch_columns=places % 4,
        image_area_starts=starts,
        time_positions=step.positions,
        row_positions=step.positions,
        column_positions=step.positions,
    )


def _heard(step: StepInputs, size: int) -> StepInputs:
    """The same with features in the place of source ids: those of an id are always the same."""
    assert step.source_ids is not None
    features = [np.random.default_rng(int(i)).standard_normal(size) for i in step.source_ids]
    return replace(step, source_features=np.array(features, np.float32).reshape(-1, size))


def with_sources(
    step: StepInputs, names: list[str], block_size: int, vocab_size: int
) -> StepInputs:
    """A step of the sequences `names` with what each is an answer to."""
    drawn = np.random.default_rng(21).integers(0, vocab_size, sum(SOURCES.values()))
    ids = {"a": drawn[: SOURCES["a"]], "b": drawn[SOURCES["a"] :]}
    new = [
        ids[name] if past == 0 else ids[name][:0]
        for name, past in zip(names, step.past_lengths, strict=True)
    ]
    blocks = [SOURCE_BLOCKS[name][: ceil(SOURCES[name] / block_size)] for name in names]
    return replace(
        step,
        source_ids=np.concatenate(new).astype(np.int64),
        source_positions=np.concatenate([np.arange(len(n)) for n in new]).astype(np.int64),
        source_starts=np.cumsum([0, *map(len, new)]).astype(np.int32),
        source_lengths=np.array([SOURCES[name] for name in names], np.int32),
        source_table=np.array([b for own in blocks for b in own], np.int32),
        source_table_starts=np.cumsum([0, *map(len, blocks)]).astype(np.int32),
    )


def steps(block_size: int, vocab_size: int, *, whole: bool = False) -> list[StepInputs]:
    """`STEPS` over tokens from all of the vocabulary; `whole`: each step has sequences anew."""
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
                sequence_slots=np.array([SLOTS[name] for name, _ in sequences], np.int32),
                logit_rows=np.arange(len(ids), dtype=np.int64),
                token_types=np.zeros(len(ids), np.int64),
            )
        )
        for name, count in sequences:
            past[name] += 0 if whole else count
    return made


def f32_bytes(model: Module) -> int:
    """Of all its slots."""
    return sum(4 * prod(slot.shape) for _, slot in model.named_parameters())


class InTypesOf:
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
