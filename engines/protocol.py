"""What every engine is to the rest of the house."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddock.graph import Array, DType, Graph, PaddockError
from paddock.graph.ops import Communicator


class BuildError(PaddockError):
    """An engine cannot be built, loaded or opened."""


class SessionLost(PaddockError):
    """A session has ended for good, e.g. because one of its ranks died: no step can run now."""


@dataclass(frozen=True)
class StepInputs:
    """One call of the compiled graph: sequences of different ages, packed.

    T tokens of S sequences: sequence s owns tokens `sequence_starts[s]:sequence_starts[s + 1]`,
    has `past_lengths[s]` tokens in the cache already, and its blocks, which cover past and new
    tokens, are `block_table[block_starts[s]:block_starts[s + 1]]`. What layers keep of a whole
    sequence is in slot `sequence_slots[s]`, which is its own from its first token on until it is
    finished or preempted; with no past tokens, what the slot held is another's and not read.

    An encoder-decoder's sequence has a source of `source_lengths[s]` tokens, which is
    `source_ids[source_starts[s]:source_starts[s + 1]]` where it has no past tokens, and not there
    again in later steps: what the decoder attends to is kept in the source's own blocks,
    `source_table[source_table_starts[s]:source_table_starts[s + 1]]`.

    Where a model sees, a step comes with the images that some of its tokens stand for, each whole:
    image i has the patches `image_starts[i]:image_starts[i + 1]`, and token t stands for the row
    `image_rows[t]` of what the model makes of all of them, or for itself where that is -1. With no
    image there are two starts, both 0. Some towers ask for the row and the column of each patch,
    and for areas of images: area j has the patches `image_area_starts[j]:image_area_starts[j + 1]`.

    `positions` count a sequence's tokens. Where a model tells by three numbers where a token is,
    in time, in rows and in columns, these come beside them.
    """

    token_ids: Array  # i64 [T]
    positions: Array  # i64 [T]
    sequence_starts: Array  # i32 [S + 1]
    past_lengths: Array  # i32 [S]
    block_table: Array  # i32 [B], B = the sum of ceil((past + new) / block_size)
    block_starts: Array  # i32 [S + 1]
    sequence_slots: Array  # i32 [S], all different, each less than the slots that were allocated
    logit_rows: Array  # i64 [R]: the tokens whose logits are wanted
    token_types: Array | None = None  # i64 [T]: the segment of a pair, for encoders that have them
    source_ids: Array | None = None  # i64 [E], often none
    source_features: Array | None = None  # f32 [E, size], in the place of ids where one hears
    source_positions: Array | None = None  # i64 [E]
    source_starts: Array | None = None  # i32 [S + 1]
    source_lengths: Array | None = None  # i32 [S]
    source_table: Array | None = None  # i32 [C]
    source_table_starts: Array | None = None  # i32 [S + 1]
    image_patches: Array | None = None  # f32 [P, size], often none
    image_positions: Array | None = None  # i64 [P]
    image_starts: Array | None = None  # i32 [I + 1]
    image_rows: Array | None = None  # i64 [T]
    image_patch_rows: Array | None = None  # i64 [P]
    image_patch_columns: Array | None = None  # i64 [P]
    image_area_starts: Array | None = None  # i32 [A + 1]
    time_positions: Array | None = None  # i64 [T]
    row_positions: Array | None = None  # i64 [T]
    column_positions: Array | None = None  # i64 [T]


class Session(Protocol):
    """An opened engine with its weights and its cache."""

    vocab_size: int
    block_size: int  # tokens that a cache block holds
    block_bytes: int  # bytes of one block over all layers
    state_bytes: int  # bytes of what layers keep of one sequence, in its slot; 0 if they do not

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        """Make room for `blocks` blocks and for the states of `slots` sequences.

        What an earlier cache held is gone.
        """

    def run(self, step: StepInputs) -> Array:
        """f32 logits [R, vocab_size]; the array is valid until the next call."""

    def close(self) -> None:
        """Give back cache and weights."""


class PipelinedSession(Session, Protocol):
    """A session of several stages, each of which may work on another step."""

    steps_in_flight: int  # as many as there are stages

    def launch(self, step: StepInputs) -> None:
        """Begin a step; its arrays may change as soon as this returns."""

    def collect(self) -> Array:
        """The logits of the oldest step that was launched, valid until the next call.

        What is raised is that step's fault alone, unless it is `SessionLost`.
        """


@dataclass(frozen=True)
class Choices:
    """How the next token of each row of logits is chosen; all arrays are [rows].

    Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off; `chances` in [0, 1) say where in
    the cumulated distribution, by token id, the drawn token lies. The token is kept for the next
    steps under `slots`, unless that is -1.
    """

    temperatures: Array  # f32
    top_ks: Array  # i32
    top_ps: Array  # f32
    min_ps: Array  # f32
    chances: Array  # f64
    slots: Array  # i32

    @staticmethod
    def greedy(slots: Array) -> Choices:
        rows = len(slots)
        return Choices(
            np.zeros(rows, np.float32),
            np.zeros(rows, np.int32),
            np.ones(rows, np.float32),
            np.zeros(rows, np.float32),
            np.zeros(rows, np.float64),
            np.asarray(slots, np.int32),
        )


class ChoosingSession(Session, Protocol):
    """A session that chooses tokens itself, so that a step can begin before the host knows them."""

    def choose(self, step: StepInputs, choices: Choices) -> None:
        """Enqueue a step whose tokens are chosen as `choices` says; there may be two on the way.

        A token id of -1 - slot stands for the one that was chosen last under that slot. Raises
        `MemoryError` where the step does not fit beside the cache; nothing has happened then.
        """

    def chosen(self) -> Array:
        """Tokens i32 [R] of the oldest step on the way; -1 where a row's logits are no numbers."""


@dataclass(frozen=True)
class Rounding:
    """How coarsely an engine computes what a graph says; a build's check measures the effect."""

    dtype: DType  # of arithmetic, and of what passes between ops
    activation_group: int | None = None
    """Beside integer weights, activations are rounded to 8 bits; so many share a scale."""
    cache: DType | None = None  # of keys and values, where it is another
    fp8_cache: bool = False
    """Keys and values are kept as e4m3, up to 448."""


def rounding_of_graph(graph: Graph, options: Mapping[str, Any]) -> Rounding:
    """Of an engine that computes in the graph's own type. `options`: `cache_dtype`."""
    cache = options.get("cache_dtype") or "auto"
    if cache == "fp8":
        return Rounding(graph.dtype, fp8_cache=True)
    return Rounding(graph.dtype, cache=None if cache == "auto" else DType(cache))


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; recipes are checked against it before anything expensive."""

    dtypes: tuple[DType, ...]
    quantization: tuple[DType, ...]  # integer types of weights
    cache_dtypes: tuple[str, ...]
    collectives: bool = False
    rounding: Callable[[Graph, Mapping[str, Any]], Rounding] = rounding_of_graph
    group_scale: DType = DType.F16
    """In which type the scales of int4 groups are to be stored."""
    gpu: bool = False
    """It computes on a GPU: what the processor is good at does not matter."""
    compiles: bool = False
    """It is a `CompilingKind`."""


class WeightSource(Protocol):
    """Bound weights, by slot name: this rank's share, as stored."""

    def whole(self, name: str) -> Array:
        """The slot's array; named parts are joined."""

    def part(self, name: str, part: str) -> Array:
        """One named part of a slot."""

    def stored(self, name: str, part: str = "") -> Array:
        """The same as the bytes lie in the file: i4 packed, two a byte, low half first."""


class Engine(Protocol):
    """A built engine: topology without weights."""

    def save(self, folder: Path) -> None:
        """Write the engine's own files into an existing folder."""

    def open(self, weights: WeightSource, options: Mapping[str, Any]) -> Session:
        """Bind weights; `options` are the recipe's `engine` settings that matter at run time."""


class InspectableEngine(Engine, Protocol):
    """What `paddock inspect` asks; the kinds of Paddock are all of this form."""

    @property
    def graph(self) -> Graph:
        """What was built, as this engine rewrote it."""

    def kernels(self, weights: WeightSource, options: Mapping[str, Any]) -> dict[str, int]:
        """What the compiler made of it: the kernels' own names, and how often each is there.

        An engine that decides on opening is opened for it. Raises `BuildError`.
        """


class RankEngine(Engine, Protocol):
    """What a kind with `collectives` builds from one rank's graph of several."""

    def open(
        self,
        weights: WeightSource,
        options: Mapping[str, Any],
        communicator: Communicator | None = None,
    ) -> Session:
        """`communicator` is what the graph's collectives speak through; all ranks open together."""


class EngineKind(Protocol):
    """A kind of engine, e.g. openvino: a module of `paddock.engines` with these names."""

    NAME: str
    CAPABILITIES: Capabilities

    def version(self) -> str:
        """The version of the compiler, part of the build cache's key."""

    def build(self, graph: Graph, options: Mapping[str, Any]) -> Engine:
        """Lower and check a traced graph. Raises `BuildError`."""

    def load(self, folder: Path) -> Engine:
        """Read what `Engine.save` wrote. Raises `BuildError` for a damaged folder."""


@dataclass(frozen=True)
class CompileEstimate:
    """What compiling takes, said before it begins."""

    seconds: float
    memory_bytes: int
    """Of the process that compiles, at most."""
    disk_bytes: int
    """Of the engine's own files."""


class CompilingKind(EngineKind, Protocol):
    """An engine that compiles ahead of time, for sizes and targets that are said before.

    `options` of `build` then hold `max_context`, `max_sequences` and `max_tokens_per_step`, as far
    as the recipe says them.
    """

    def check_target(self, dtypes: Sequence[DType], options: Mapping[str, Any]) -> None:
        """Raise `BuildError` for what can be refused before a checkpoint is downloaded."""

    def key_parts(self, graph: Graph, options: Mapping[str, Any]) -> dict[str, str]:
        """What a build depends on beside the graph: compiler, targets, sizes."""

    def estimate(
        self, graph: Graph, options: Mapping[str, Any], weight_bytes: int
    ) -> CompileEstimate:
        """What `compile` will take for this graph, whose stored weights are so many bytes."""

    def compile(
        self,
        graph: Graph,
        options: Mapping[str, Any],
        *,
        weights: WeightSource,
        progress: Callable[[float, float], None],
    ) -> Engine:
        """`build`, with weights that may be embedded; `progress` is told (done, total)."""

    def define(self, graph: Graph, options: Mapping[str, Any]) -> CompiledEngine:
        """An engine that is not compiled, to be interpreted."""


class CompiledEngine(Engine, Protocol):
    """What a `CompilingKind` builds and loads."""

    def why_not_here(self) -> str | None:
        """Why this machine cannot run it, or None."""

    def refitted(self, weights: WeightSource) -> Engine:
        """The same with other weights in the place of those that it holds.

        Raises `BuildError`, also where this machine cannot.
        """

    def open_interpreted(self, weights: WeightSource) -> Session:
        """What the compiler was given, evaluated in NumPy."""
