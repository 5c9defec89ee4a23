"""Choosing tokens where the logits are: the ops behind those of a step, which engines share."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from paddock.engines.protocol import Choices
from paddock.graph import Array, DType
from paddock.graph.op import Op
from paddock.graph.tensor import TensorType

ONE = float(1 << 40)  # the likeliest token's weight, as a fixed-point number


CHOICE_TYPES: dict[str, np.dtype[Any]] = {
    "temperatures": np.dtype(np.float32),
    "top_ks": np.dtype(np.int32),
    "top_ps": np.dtype(np.float32),
    "min_ps": np.dtype(np.float32),
    "chances": np.dtype(np.float64),
    "slots": np.dtype(np.int32),
}
assert [f.name for f in fields(Choices)] == list(CHOICE_TYPES)


@dataclass(frozen=True)
class ChooseTokens(Op):
    """logits f32 [rows, vocabulary], `Choices`, last tokens i32 [slots] -> tokens i32 [rows], and
    the last tokens with these under their slots. A token is -1 where no logit is a number.

    The filters are those of `paddock.runtime.sampling.token_filters`, in its order: top-k, top-p,
    min-p.
    """

    def infer(self, logits: TensorType, *rest: TensorType) -> tuple[TensorType, TensorType]:
        return TensorType(DType.I32, logits.shape[:1]), rest[-1]

    def compute(self, logits: Array, *rest: Array) -> tuple[Array, Array]:
        temperatures, top_ks, top_ps, min_ps, chances, slots, last_tokens = rest
        tokens = np.empty(len(logits), np.int32)
        for r, row in enumerate(logits):
            best = int(row.argmax())
            if not np.isfinite(row[best]):
                tokens[r] = -1
            elif temperatures[r] == 0:
                tokens[r] = best
            else:
                kept = kept_weights(row, temperatures[r], top_ks[r], top_ps[r], min_ps[r])
                sums = kept.cumsum(dtype=np.uint64)
                wanted = min(int(float(sums[-1]) * float(chances[r])), int(sums[-1]) - 1)
                tokens[r] = int(sums.searchsorted(np.uint64(wanted), side="right"))
        kept_tokens = last_tokens.copy()
        kept_tokens[slots[slots >= 0]] = tokens[slots >= 0]
        return tokens, kept_tokens


def kept_weights(
    row: Array, temperature: np.float32, top_k: int, top_p: float, min_p: float
) -> Array:
    """Fixed-point weights u64 [vocabulary], 0 where a token is filtered out."""
    scaled = np.exp((row - row.max()) / np.float32(temperature))
    weights = (scaled.astype(np.float64) * ONE).astype(np.uint64)
    keep = np.ones(len(row), np.bool_)
    if 0 < top_k < len(row):
        keep &= row >= np.partition(row, len(row) - top_k)[len(row) - top_k]
    if top_p < 1:
        wanted = max(int(float(weights[keep].sum()) * float(np.float32(top_p))), 1)
        order = np.flatnonzero(keep)
        order = order[np.lexsort((order, -row[order]))]
        last = int(weights[order].cumsum(dtype=np.uint64).searchsorted(np.uint64(wanted)))
        least = row[order[min(last, len(order) - 1)]]
        above = keep & (row > least)
        missing = max(wanted - int(weights[above].sum()), 0)
        equal = np.flatnonzero(keep & (row == least))
        each = int(weights[equal[0]])
        count = max(1, math.ceil(missing / each)) if each else len(equal)
        keep = above
        keep[equal[:count]] = True
    if min_p > 0:
        keep &= scaled >= np.float32(min_p)
    return np.where(keep, weights, np.uint64(0))


@dataclass(frozen=True)
class FillIn(Op):
    """token_ids [tokens] with those below 0, -1 - slot, replaced by that slot's last token."""

    def infer(self, token_ids: TensorType, last_tokens: TensorType) -> TensorType:
        return token_ids

    def compute(self, token_ids: Array, last_tokens: Array) -> Array:
        known = last_tokens[np.maximum(-1 - token_ids, 0)]
        return np.where(token_ids < 0, np.maximum(known, 0), token_ids)
