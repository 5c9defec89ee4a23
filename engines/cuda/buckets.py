"""The sizes that steps are padded to, so that a few captured graphs serve all of them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from paddock.graph import Array
from paddock.graph.tensor import (
    IMAGE_PATCHES,
    IMAGE_STARTS,
    ROWS,
    SEQUENCES,
    SOURCE_TABLE,
    SOURCE_TOKENS,
    STARTS,
    TABLE,
    TOKENS,
    Dim,
)


@dataclass(frozen=True, order=True)
class Bucket:
    """A step of `tokens` tokens of `sequences` sequences, `rows` of whose logits are made.

    The first sequences of a step have one token each, `singles` at most; `prompts` at most follow,
    of up to `longest` tokens. Encoder-decoders' steps bring `source_tokens` of new sources, and
    their sequences' sources lie in `source_blocks`. Models that see are given `images` of `patches`
    in all.
    """

    tokens: int
    sequences: int
    rows: int
    singles: int
    prompts: int
    longest: int
    source_tokens: int = 0
    source_blocks: int = 0
    patches: int = 0
    images: int = 0

    @property
    def decodes(self) -> bool:
        """Whether every sequence has one token."""
        return self.prompts == 0

    def sizes(self, table: int) -> dict[Dim, int]:
        """The dimensions of a graph; `table` is the size of the block table."""
        return {
            TOKENS: self.tokens,
            SEQUENCES: self.sequences,
            STARTS: self.sequences + 1,
            ROWS: self.rows,
            TABLE: table,
            SOURCE_TOKENS: self.source_tokens,
            SOURCE_TABLE: self.source_blocks,
            IMAGE_PATCHES: self.patches,
            IMAGE_STARTS: self.images + 1,
        }


def sizes(limit: int) -> list[int]:
    """1, 2, 4, 8, 16, then in steps of a sixteenth to an eighth of the size, up to `limit` and it.

    So little of a step is padding: steps grow to 128, the rows of a tile of a product.
    """
    found = [n for n in (1, 2, 4, 8) if n < limit]
    n, step = 16, 8
    while n < limit:
        found.append(n)
        if n >= 16 * step and step < 128:
            step *= 2
        n += step
    return [*found, limit]


def round_up(count: int, steps: list[int]) -> int:
    """The smallest of the sorted sizes that holds `count`; `count` itself beyond them all."""
    at = bisect_left(steps, count)
    return steps[at] if at < len(steps) else count


class Buckets:
    """Which bucket a step goes into."""

    def __init__(self, max_sequences: int, max_tokens: int) -> None:
        self._sequences = sizes(max_sequences)
        self._tokens = sizes(max_tokens)

    def bucket(
        self,
        sequence_starts: Array,
        rows: int,
        sources: tuple[int, int] = (0, 0),
        images: tuple[int, int] = (0, 0),
    ) -> Bucket:
        """The bucket of a step with these sequences, whose first ones may have one token each.

        `sources`: their new tokens, and the blocks of all. `images`: their patches, and how many.
        """
        brought = tuple(
            _power(n, least) if n else 0
            for n, least in zip((*sources, *images), (16, 16, 16, 1), strict=True)
        )
        sequences, tokens = len(sequence_starts) - 1, int(sequence_starts[-1])
        if tokens == sequences == rows:
            size = round_up(sequences, self._sequences)
            return Bucket(size, size, size, size, 0, 1, *brought)
        leading = sequence_starts == np.arange(sequences + 1)
        singles = int(leading.argmin()) - 1 if not leading.all() else sequences
        singles = min(singles, sequences)
        padded = round_up(tokens, self._tokens)
        longest = int(np.diff(sequence_starts).max())
        return Bucket(
            padded,
            min(padded, _power(sequences, 4)),
            _power(rows, 4),
            min(padded, _power(singles, 4)) if singles else 0,
            _power(max(sequences - singles, 1), 1),
            min(padded, _power(longest, 64)),
            *brought,
        )


def _power(count: int, least: int) -> int:
    """The power of two that holds `count`: few, since these sizes cost little."""
    return max(least, 1 << (count - 1).bit_length())
