"""Attention written out: the plainest form that can be right."""

from __future__ import annotations

import math

import numpy as np

from paddock.graph import Array
from paddock.graph.ops import Attention


def dense(op: Attention, q: Array, k: Array, v: Array, sinks: Array | None = None) -> Array:
    """One sequence, every token and head by itself, in f64."""
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    out = np.zeros((tokens, heads, v.shape[2]))
    for i in range(tokens):
        first = 0 if op.window is None else max(0, i - op.window + 1)
        for h in range(heads):
            scores = []
            for j in range(first, i + 1):
                score = op.scale * float(np.dot(q[i, h], k[j, h // group]))
                if op.soft_cap is not None:
                    score = op.soft_cap * math.tanh(score / op.soft_cap)
                if op.alibi is not None:
                    score -= op.alibi[h] * (i - j)
                scores.append(score)
            lost = [] if sinks is None else [float(sinks[h])]
            weights = np.exp(np.array(scores + lost) - max(scores + lost))
            weights = weights[: len(scores)] / weights.sum()
            out[i, h] = weights @ v[first : i + 1, h // group]
    return out
