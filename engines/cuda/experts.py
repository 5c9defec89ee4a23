"""How mixtures of experts become kernels: the choice, products with the experts' weights, sums."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from paddock.engines.cuda.device import Instruction
from paddock.engines.cuda.launching import Room, Sized, grid_of
from paddock.engines.cuda_plugin import TYPE
from paddock.graph import DType
from paddock.graph import ops as F
from paddock.graph.tensor import TensorType

if TYPE_CHECKING:
    from paddock.engines.cuda.gpu import GPU

SCORING = {"softmax": 0, "sigmoid": 1, "chosen_softmax": 2, "sparsemixer": 3}
FEW_PAIRS = 16
"""Of tokens and experts: up to so many, each reads its expert's weights for itself."""


def route(gpu: GPU, i: Instruction) -> None:
    how = i.op
    assert isinstance(how, F.Route)
    logits, *bias = i.inputs
    tokens, experts = logits.shape
    gpu.launch(
        gpu.function("experts", "route", TYPE=TYPE[i.types[0].dtype]),
        (tokens,),
        128,
        logits,
        bias[0] if bias else None,
        np.int32(bool(bias) and i.types[1].dtype is DType.F32),
        *i.outputs,
        np.int32(experts),
        np.int32(how.chosen),
        np.int32(SCORING[how.scores]),
        np.int32(how.normalize),
        np.float32(how.epsilon),
        np.float32(how.scale),
        np.int32(how.groups),
        np.int32(how.kept_groups),
        np.int32(how.group_best),
        np.float32(how.jitter),
        shared=(2 * experts + how.groups) * 4,
    )


def weighted_sum(gpu: GPU, i: Instruction) -> None:
    y, weights = i.inputs
    tokens, chosen, features = y.shape
    gpu.launch(
        gpu.function("experts", "weighted_sum", TYPE=TYPE[i.types[0].dtype]),
        grid_of(gpu, tokens * features),
        256,
        y,
        weights,
        np.int32(i.types[1].dtype is DType.F32),
        i.outputs[0],
        np.int64(tokens),
        np.int32(chosen),
        np.int64(features),
    )


def _in_tiles(x: TensorType, pairs: int) -> bool:
    return pairs > FEW_PAIRS and x.dtype is not DType.F32 and x.size(-1) % 8 == 0


def grouped_linear_scratch(sized: Sized) -> list[Room]:
    """Where each expert's pairs begin, and the pairs in the experts' order."""
    x, weight, ids = sized.types[:3]
    pairs = ids.size(0) * ids.size(1)
    if not _in_tiles(x, pairs):
        return []
    number = np.dtype(np.int32)
    return [((weight.size(0) + 1,), number), ((pairs,), number)]


def grouped_linear(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.GroupedLinear)
    x, weight, ids, *bias = i.inputs
    (y,) = i.outputs
    held, outputs, inputs = weight.shape
    chosen, pairs = ids.shape[1], ids.size
    own, dtype = np.int32(x.ndim == 3), i.types[0].dtype
    first = np.int32(i.op.first or 0)
    added = bias[0] if bias else None
    if not i.scratch:
        gpu.launch(
            gpu.function("experts", "grouped_rows", TYPE=TYPE[dtype]),
            (ceil(outputs / 8), pairs),
            256,
            x,
            weight,
            ids,
            added,
            y,
            np.int32(outputs),
            np.int32(inputs),
            np.int32(chosen),
            own,
            first,
            np.int32(held),
            np.int32(inputs % (16 // y.itemsize) == 0),
        )
        return
    starts, order = i.scratch
    if i.op.first is not None:
        gpu.clear(y)  # other ranks' pairs are in no tile
    gpu.launch(
        gpu.function("experts", "sort_pairs", TYPE=TYPE[dtype]),
        (1,),
        1024,
        ids,
        starts,
        order,
        np.int32(pairs),
        first,
        np.int32(held),
        shared=held * 4,
    )
    gpu.launch(
        gpu.function("experts", "grouped_tiles", TYPE=TYPE[dtype]),
        (ceil(pairs / 64) + min(held, pairs), ceil(outputs / 128)),
        128,
        x,
        weight,
        starts,
        order,
        added,
        y,
        np.int32(outputs),
        np.int32(inputs),
        np.int32(chosen),
        own,
        np.int32(held),
        shared=2 * 192 * 72 * 2,
    )
