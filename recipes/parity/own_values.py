"""What passes between the modules of a model of ours, as an engine computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from paddock.engines.protocol import EngineKind, StepInputs, WeightSource
from paddock.graph import Array, DType, Module
from paddock.layers import trace_modules


@dataclass(frozen=True)
class Passed:
    """What passed into a module or out of it: arrays f32 [tokens, size], one a tensor.

    The path of what the whole model gives is empty.
    """

    path: str
    way: Literal["in", "out"]
    arrays: tuple[Array, ...]


def own_values(
    model: Module,
    kind: EngineKind,
    weights: WeightSource,
    token_ids: Array,
    *,
    dtype: DType,
    max_context: int,
    options: Mapping[str, Any],
) -> list[Passed]:
    """Of one sequence, run whole, in the order in which values pass.

    Raises `GraphError` and `BuildError` as a build does.
    """
    graph, watched = trace_modules(model, dtype=dtype, max_context=max_context)
    session = kind.build(graph, options).open(weights, options)
    try:
        blocks = -(-len(token_ids) // session.block_size)
        session.allocate_cache(blocks, 1)
        columns = np.array(session.run(_whole(token_ids, blocks)))
    finally:
        session.close()
    return [Passed(w.path, w.way, tuple(columns[:, c] for c in w.columns)) for w in watched]


def _whole(token_ids: Array, blocks: int) -> StepInputs:
    """A step of all tokens of one sequence; the rows of all are read."""
    count = len(token_ids)
    return StepInputs(
        token_ids=token_ids.astype(np.int64),
        positions=np.arange(count, dtype=np.int64),
        sequence_starts=np.array([0, count], np.int32),
        past_lengths=np.zeros(1, np.int32),
        block_table=np.arange(blocks, dtype=np.int32),
        block_starts=np.array([0, blocks], np.int32),
        sequence_slots=np.zeros(1, np.int32),
        logit_rows=np.arange(count, dtype=np.int64),
        token_types=np.zeros(count, np.int64),
    )
