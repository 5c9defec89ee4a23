"""The sizes that steps are padded to, so that a few captured graphs serve all of them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Bucket:
    """A step of `tokens` tokens of `sequences` sequences, `rows` of whose logits are made.

    `singles`: every sequence has one token, so that all three are equal.
    """

    tokens: int
    sequences: int
    rows: int
    singles: bool


def sizes(limit: int) -> list[int]:
    """1, 2, 4, 8, 16, then in steps of a sixteenth to an eighth of the size, up to `limit` and it.

    So little of a large step is padding, and a few dozen sizes reach any limit.
    """
    found = [n for n in (1, 2, 4, 8) if n < limit]
    n, step = 16, 8
    while n < limit:
        found.append(n)
        if n >= 16 * step:
            step *= 2
        n += step
    return [*found, limit]


def round_up(count: int, steps: list[int]) -> int:
    """The smallest of the sorted sizes that holds `count`; `count` itself beyond them all."""
    at = bisect_left(steps, count)
    return steps[at] if at < len(steps) else count


class Buckets:
    """Which bucket a step goes into. `max_tokens` bounds the steps that are padded."""

    def __init__(self, max_sequences: int, max_tokens: int) -> None:
        self._sequences = sizes(max_sequences)
        self._tokens = sizes(max_tokens)

    def bucket(self, tokens: int, sequences: int, rows: int) -> Bucket:
        """The bucket of a step with these numbers."""
        if tokens == sequences == rows:
            size = round_up(sequences, self._sequences)
            return Bucket(size, size, size, singles=True)
        padded = round_up(tokens, self._tokens)
        return Bucket(
            padded,
            min(padded, _power(sequences)),
            min(padded, _power(rows)),
            singles=False,
        )


def _power(count: int) -> int:
    """The power of two from 4 up that holds `count`: few, since these sizes cost little."""
    return max(4, 1 << (count - 1).bit_length())
