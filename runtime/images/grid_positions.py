"""Where tokens are in time, in rows and in columns, for models that are told by three numbers.

Wang et al. 2024, arxiv.org/abs/2409.12191, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.images.prepared import PlacedImage


@dataclass(frozen=True, eq=False)
class GridPositions:
    """Those of a prompt with images; what is written behind it goes on from the largest.

    They depend on nothing behind a token, so that a prefix is the same whatever follows it.
    """

    prompt: Array  # i64 [3, tokens]
    shift: int
    """From the number of a token behind the prompt to its three positions, which are one."""

    @staticmethod
    def of(length: int, images: Sequence[PlacedImage]) -> GridPositions:
        """Of a prompt of so many tokens. Text has three equal numbers; of an image all tokens have
        one time, and what follows it is behind its last row and its last column."""
        found = np.empty((3, length), np.int64)
        begin = position = 0
        for placed in images:
            found[:, begin : placed.start] = np.arange(position, position + placed.start - begin)
            position += placed.start - begin
            rows, columns = placed.image.grid
            place = np.arange(rows * columns)
            found[:, placed.start : placed.stop] = position
            found[1, placed.start : placed.stop] += place // columns
            found[2, placed.start : placed.stop] += place % columns
            position += max(rows, columns)
            begin = placed.stop
        found[:, begin:] = np.arange(position, position + length - begin)
        return GridPositions(found, position - begin)

    def between(self, begin: int, end: int) -> Array:
        """Of tokens `begin : end` of the sequence, i64 [3, end - begin]."""
        known = self.prompt[:, begin:end]
        if known.shape[1] == end - begin:
            return known
        behind = np.arange(begin + known.shape[1], end) + self.shift
        return np.concatenate([known, np.broadcast_to(behind, (3, len(behind)))], axis=1)
