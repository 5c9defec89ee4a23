"""The launches that choose tokens on an NVIDIA GPU, by the kernels of `cuda/kernels/sample.cu`.

The engines cuda and tensorrt share them: each says how it launches a kernel, and where arrays are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, Protocol

import numpy as np

SOURCE = "sample"  # of the kernels


class Launch(Protocol):
    def __call__(self, kernel: str, grid: tuple[int, ...], block: int, *arguments: Any) -> None:
        """Enqueue a kernel of `SOURCE`. Arguments: arrays or addresses, and NumPy numbers."""


def choose(
    launch: Launch,
    processors: int,
    shape: tuple[int, int],
    logits: Any,
    best: Any,
    choices: Sequence[Any],
    tokens: Any,
    last_tokens: Any,
) -> None:
    """`ChooseTokens` over logits f32 of this shape, [rows, vocabulary].

    `best` u64 [rows] is 0 before and after; `choices` are those of `CHOICE_TYPES`, in its order;
    `processors`: how many the GPU has, which changes how finely rows are cut and no token.
    """
    rows, vocabulary = shape
    across = max(1, min(ceil(vocabulary / 2048), ceil(4 * processors / rows)))
    launch("likeliest", (across, rows), 256, logits, best, np.int32(vocabulary))
    launch(
        "choose", (rows,), 1024, logits, best, *choices, tokens, last_tokens, np.int32(vocabulary)
    )


def fill_in(launch: Launch, tokens: int, token_ids: Any, last_tokens: Any) -> None:
    """`FillIn` over so many token ids i64, in place."""
    launch("fill_in", (ceil(tokens / 256),), 256, token_ids, last_tokens, np.int32(tokens))
