"""Log-probabilities as they are reported: of the model's own distribution, before any setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.token_filters import top_ids

_CHUNK = 1 << 16
"""Logits worked on at once, so that the intermediate arrays stay in a core's cache."""


class SampledToken(NamedTuple):
    """A token, and what was asked about it."""

    token_id: int
    logprob: float | None = None
    """Natural logarithm of its probability, where the request asked for log-probabilities."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, likeliest first, equal ones by id."""


class LogitsError(RequestError):
    """Logits that no token can be chosen from; `rows` says which rows of the batch they are."""

    def __init__(self, message: str, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rows = rows


def prompt_logprobs(logits: Array, next_token_ids: Array, count: int) -> list[SampledToken]:
    """What the model thought of the tokens that a prompt goes on with.

    logits: f32 [R, V], row r after a prompt token; next_token_ids: i64 [R], the tokens that
    follow; count: alternatives to report. Raises `LogitsError` for rows with NaN or infinities.
    """
    peaks = logits.max(axis=1)
    broken = tuple(np.flatnonzero(~np.isfinite(peaks)).tolist())
    if broken:
        raise LogitsError(f"the prompt: {describe(logits[broken[0]])}", broken)
    counts = [count] * logits.shape[0]
    return report(logits, peaks, next_token_ids.tolist(), counts)


def report(
    logits: Array, peaks: Array, token_ids: Sequence[int], counts: Sequence[int]
) -> list[SampledToken]:
    """`SampledToken`s with log-probabilities.

    logits: f32 [R, V]; peaks: f32 [R], their finite maxima; counts: how many alternatives of
    each. A row's result does not depend on the others.
    """
    tokens: list[SampledToken] = []
    step = max(1, _CHUNK // logits.shape[1])
    for start in range(0, len(token_ids), step):
        some = slice(start, start + step)
        weights = logits[some] - peaks[some, None]
        sums = np.exp(weights, out=weights).sum(axis=1)
        shifts = peaks[some].astype(np.float64) + np.log(sums.astype(np.float64))
        for i, shift in enumerate(shifts.tolist(), start):
            row = logits[i]
            top = top_ids(row, counts[i])
            top_logprobs = row[top].astype(np.float64) - shift
            tokens.append(
                SampledToken(
                    token_ids[i],
                    float(row[token_ids[i]]) - shift,
                    tuple(zip(top.tolist(), top_logprobs.tolist(), strict=True)),
                )
            )
    return tokens


def describe(row: Array) -> str:
    """What is wrong with f32 [V] of which no largest value can be taken."""
    wrong = np.flatnonzero(np.isnan(row) | np.isposinf(row))
    if wrong.size == 0:
        return "every token is banned or has a logit of -inf"
    nans = int(np.isnan(row).sum())
    return (
        f"the model's logits hold {nans} NaN and {wrong.size - nans} +inf among {row.size} values"
        f" (first at token id {wrong[0]}); its weights may be damaged, or its numbers too large for"
        " the engine's type: try dtype=f32"
    )
