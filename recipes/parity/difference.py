"""The shape of an error: how large, in which rows and columns, and what would have made it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddock.graph import Array

SHADES = " .:-=+*#%@"
"""Of the picture: each is ten times the error of the one before, from a tenth of the tolerance."""
GROWS = 3.0
"""Errors of the last rows over those of the first, from which on they are said to grow."""


@dataclass(frozen=True)
class Difference:
    """Of arrays [rows, columns]; errors are relative to the largest expected magnitude."""

    error: float
    rows: tuple[int, ...]
    """Those that differ."""
    row_count: int
    columns: tuple[tuple[int, int], ...]
    """Runs [start, stop) of those that differ."""
    heads: tuple[int, ...]
    """Those that differ, where the columns are heads and only some do."""
    grows: bool
    """Later rows differ more."""
    kind: str
    """What makes the found values of the expected ones, or empty."""
    picture: tuple[str, ...]

    def sentences(self) -> list[str]:
        """In words, what an engineer would look at first."""
        said = []
        if len(self.rows) == self.row_count:
            said.append("all rows differ" + (", later ones more" if self.grows else ""))
        elif self.rows == tuple(range(self.rows[0], self.row_count)):
            said.append(f"rows differ from {self.rows[0]} on" + (", more and more" * self.grows))
        else:
            said.append(f"{len(self.rows)} of {self.row_count} rows differ, first {self.rows[0]}")
        if self.heads:
            said.append(f"only in heads {', '.join(map(str, self.heads))}")
        elif self.columns != ((0, self._width),):
            runs = [f"{a}:{b}" for a, b in self.columns[:4]]
            said.append(f"in columns {', '.join(runs)}" + (" ..." * (len(self.columns) > 4)))
        if self.kind:
            said.append(self.kind)
        return said

    @property
    def _width(self) -> int:
        return self.columns[-1][1]


def difference(
    found: Array, expected: Array, tolerance: float, *, head_size: int | None = None
) -> Difference:
    """Describe how `found` differs from `expected`, both [rows, columns], beyond `tolerance`."""
    f, e = found.astype(np.float64), expected.astype(np.float64)
    scale = magnitude(e)
    errors = np.where(np.isfinite(f - e), np.abs(f - e) / scale, np.inf)
    wrong: Array = errors > tolerance
    rows = tuple(int(i) for i in np.flatnonzero(wrong.any(1)))
    columns: Array = np.any(wrong, axis=0)
    heads: tuple[int, ...] = ()
    if head_size and columns.size % head_size == 0 and columns.size > head_size:
        by_head = columns.reshape(-1, head_size).any(1)
        if not by_head.all():
            heads = tuple(int(i) for i in np.flatnonzero(by_head))
    return Difference(
        error=float(errors.max()),
        rows=rows,
        row_count=len(f),
        columns=_runs(columns),
        heads=heads,
        grows=_grows(errors),
        kind=_kind(f, e, 10 * tolerance * scale) if rows else "",
        picture=_picture(errors, tolerance),
    )


def relative_error(found: Array, expected: Array) -> float:
    """The largest difference relative to the largest expected magnitude; inf of no numbers."""
    worst = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
    return float(worst / magnitude(expected)) if np.isfinite(worst) else float("inf")


def magnitude(expected: Array) -> float:
    """The largest, or 1 where all are zero."""
    return float(np.abs(expected).max(initial=0.0)) or 1.0


def _kind(found: Array, expected: Array, near: float) -> str:
    """The simplest of what turns `expected` into `found` to within `near`."""
    if not np.isfinite(found).all():
        return f"{int((~np.isfinite(found)).sum())} values are no numbers"
    power = float((expected * expected).sum())
    if power == 0:
        return "the reference is zero throughout"
    if np.abs(found).max() < near:
        return "it is zero throughout"
    factor = float((found * expected).sum()) / power
    if np.abs(found - factor * expected).max() < near:
        return "the sign is the opposite" if abs(factor + 1) < 1e-3 else f"it is {factor:.4g} times"
    offset = found - expected
    if np.abs(offset - offset.mean(0)).max() < near:
        return "each column is off by a constant, as a bias would make it"
    squares = (expected * expected).sum(0)
    factors = (found * expected).sum(0) / np.where(squares > 0, squares, 1)
    if np.abs(found - factors * expected).max() < near:
        if np.allclose(np.abs(factors), 1, atol=1e-2):
            return f"the sign of {int((factors < 0).sum())} columns is the opposite"
        return "each column is a multiple, as another weight of a norm would make it"
    squares = (expected * expected).sum(1)
    factors = (found * expected).sum(1) / np.where(squares > 0, squares, 1)
    if np.abs(found - factors[:, None] * expected).max() < near:
        return "each row is a multiple, as another epsilon or statistic of a norm would make it"
    ours, theirs = np.argsort(found[-1]), np.argsort(expected[-1])
    if np.abs(found[:, ours] - expected[:, theirs]).max() < near:
        return "the columns are in another order"
    return ""


def _grows(errors: Array) -> bool:
    """Whether the last third of the rows differs much more than the first."""
    third = len(errors) // 3
    if third < 2:
        return False
    by_row = np.sqrt(np.mean(np.square(errors), axis=1))
    return bool(by_row[-third:].mean() > GROWS * by_row[:third].mean())


def _runs(flags: Array) -> tuple[tuple[int, int], ...]:
    """Where flags are set, as [start, stop)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _picture(errors: Array, tolerance: float, height: int = 16, width: int = 64) -> tuple[str, ...]:
    """A line for each few rows; a sign for the largest error of each few columns."""
    rows = np.array_split(np.arange(errors.shape[0]), min(height, errors.shape[0]))
    columns = np.array_split(np.arange(errors.shape[1]), min(width, errors.shape[1]))
    worst = np.array([[errors[np.ix_(r, c)].max() for c in columns] for r in rows])
    with np.errstate(divide="ignore"):
        shade = np.log10(worst / tolerance) + 2
    shade = np.nan_to_num(shade, posinf=len(SHADES)).clip(0, len(SHADES) - 1).astype(int)
    return tuple(
        f"{int(r[0]):5} |{''.join(SHADES[i] for i in line)}|"
        for r, line in zip(rows, shade, strict=True)
    )
