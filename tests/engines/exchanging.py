"""A graph in which tensor-parallel ranks exchange in every way, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddock.engines.protocol import StepInputs
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph import ops as F
from paddock.graph.ops import Weight, input_tensor
from paddock.graph.tensor import ROWS, TOKENS

VOCAB, HIDDEN, ANSWERS = 11, 12, 7


def step(seed: int = 0) -> StepInputs:
    """One sequence of five tokens, all of whose logits are wanted."""
    ids = np.random.default_rng(seed).integers(0, VOCAB, 5)
    return StepInputs(
        token_ids=ids.astype(np.int64),
        positions=np.arange(5),
        sequence_starts=np.array([0, 5], np.int32),
        past_lengths=np.zeros(1, np.int32),
        block_table=np.zeros(1, np.int32),
        block_starts=np.array([0, 1], np.int32),
        sequence_slots=np.zeros(1, np.int32),
        logit_rows=np.arange(5),
    )


@dataclass(frozen=True)
class Weights:
    """Of one rank: its own embedding, and a head that all have."""

    rank: int

    def whole(self, name: str) -> Array:
        seed = [1, self.rank] if name == "embedding" else [2]
        shape = (VOCAB, HIDDEN) if name == "embedding" else (ANSWERS, HIDDEN)
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    def part(self, name: str, part: str) -> Array:
        raise KeyError(part)

    def stored(self, name: str, part: str = "") -> Array:
        return self.whole(name)


def graph(ranks: int) -> Graph:
    """Every rank has the same."""
    with use_graph(Graph(DType.F32)) as made:
        ids = input_tensor("token_ids", DType.I64, TOKENS)
        rows = input_tensor("logit_rows", DType.I64, ROWS)
        own = F.gather(Weight("embedding", DType.F32, (VOCAB, HIDDEN))(), ids)
        hidden = exchanged(own, ranks)
        head = Weight("head", DType.F32, (ANSWERS, HIDDEN))()
        made.outputs = (F.linear(F.gather(hidden, rows), head),)
    made.verify()
    return made


def exchanged(own: Tensor, ranks: int) -> Tensor:
    """The parts of the sum, each squared by its rank, joined again; and twice the first rank's."""
    part = F.reduce_scatter(own, ranks)
    return F.add(F.all_gather(F.mul(part, part), ranks), F.scale(F.broadcast(own), 2.0))


def expected(ranks: int, ids: Array) -> Array:
    embeddings = [Weights(rank).whole("embedding").astype(np.float64)[ids] for rank in range(ranks)]
    hidden = sum(embeddings) ** 2 + 2 * embeddings[0]
    result: Array = hidden @ Weights(0).whole("head").astype(np.float64).T
    return result
