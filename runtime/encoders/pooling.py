"""One vector for a text, out of the hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from paddock.graph.dtype import Array

Reads = Literal["first", "last", "all"]
"""The tokens of a sequence whose rows an engine gives back."""


@dataclass(frozen=True)
class Mode:
    """A way of pooling: what it needs, and what it makes of hidden states [tokens, hidden]."""

    reads: Reads
    pool: Callable[[Array], Array]


def _weighted(x: Array) -> Array:
    """Later tokens have seen more and count more: Muennighoff 2022, arxiv.org/abs/2202.08904."""
    weights = np.arange(1, len(x) + 1, dtype=np.float32)
    mean: Array = weights @ x / weights.sum()
    return mean


# By the names that sentence-transformers has for them.
MODES: dict[str, Mode] = {
    "cls": Mode("first", lambda x: x[0]),
    "lasttoken": Mode("last", lambda x: x[-1]),
    "mean": Mode("all", lambda x: x.mean(0)),
    "max": Mode("all", lambda x: x.max(0)),
    "mean_sqrt_len_tokens": Mode("all", lambda x: x.sum(0) / np.float32(np.sqrt(len(x)))),
    "weightedmean": Mode("all", _weighted),
}


def reads_of(modes: Sequence[str], *, without_prompt: bool = False) -> Reads:
    """Which tokens' hidden states `pool` is to be given."""
    found: set[Reads] = {MODES[mode].reads for mode in modes}
    return found.pop() if len(found) == 1 and not without_prompt else "all"


def pool(x: Array, modes: Sequence[str], prompt: int = 0) -> Array:
    """x: f32 [tokens, hidden] -> [hidden x modes]; the first `prompt` tokens do not count.

    As sentence-transformers' `Pooling`, which keeps their weights in a weighted mean, however.
    """
    kept = x[min(prompt, len(x) - 1) :]
    pieces = []
    for mode in modes:
        if mode == "weightedmean" and prompt:
            weights = np.arange(len(x) - len(kept) + 1, len(x) + 1, dtype=np.float32)
            pieces.append(weights @ kept / weights.sum())
        else:
            pieces.append(MODES[mode].pool(kept))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def normalized(x: Array) -> Array:
    """x: [size] -> the same direction, of length 1."""
    return x / np.maximum(np.linalg.norm(x), np.float32(1e-12))
