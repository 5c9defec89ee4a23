"""Where each value of a step lies: one arena, in which what is never needed together overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 256  # bytes: what cudaMalloc promises, and more than any kernel here asks for


@dataclass(frozen=True)
class Lifetime:
    """`nbytes` that are needed from instruction `first` to instruction `last`, both included."""

    first: int
    last: int
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """Bytes from the arena's start for each lifetime, and the arena's size."""

    offsets: tuple[int, ...]
    nbytes: int


def plan(lifetimes: Sequence[Lifetime]) -> Plan:
    """Largest first, each at the lowest offset that nothing alive at the same time covers.

    Greedy by size: Pisarchyk and Lee 2020, arxiv.org/abs/2001.03288.
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []  # by offset
    top = 0
    for i in sorted(range(len(lifetimes)), key=lambda i: -lifetimes[i].nbytes):
        wanted = lifetimes[i]
        size = -(-wanted.nbytes // ALIGNMENT) * ALIGNMENT
        at = 0
        for j in placed:
            other = lifetimes[j]
            if other.last < wanted.first or wanted.last < other.first:
                continue
            if at + size <= offsets[j]:
                break
            at = max(at, offsets[j] + -(-other.nbytes // ALIGNMENT) * ALIGNMENT)
        offsets[i] = at
        top = max(top, at + size)
        placed.append(i)
        placed.sort(key=lambda j: offsets[j])
    return Plan(tuple(offsets), top)
