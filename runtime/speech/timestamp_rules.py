"""Which tokens may follow in an answer with times, and how likely the chosen ones were.

The rules are those of `ApplyTimestampRules` in decoding.py of github.com/openai/whisper, which
are transformers' `WhisperTimeStampLogitsProcessor`, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.speech.speech_tokens import SpeechTokens


class TimestampRules:
    """One answer's place: a `Constraint`."""

    def __init__(self, tokens: SpeechTokens) -> None:
        self._tokens = tokens
        self._ends = list(tokens.ends)
        self._made: list[int] = []
        self._logits: Array | None = None
        self._normalizer = 0.0
        self.sum_logprob = 0.0
        """Of the tokens so far, the end among them, as these rules leave the distribution."""

    @property
    def finished(self) -> bool:
        return False

    def restrict(self, row: Array) -> None:
        """See `Constraint`."""
        first = self._tokens.first_time
        text, times = row[:first], row[first:]
        text[self._tokens.no_times] = -np.inf
        made = self._made
        if not made:  # an answer begins with a time, which is not late
            text[:] = -np.inf
            times[self._tokens.latest_first + 1 :] = -np.inf
        else:
            # Times come in pairs, the end of a segment and the begin of the next one, but for the
            # first one, and a last one before the end of the text.
            after_time = made[-1] >= first
            after_two = after_time and (len(made) < 2 or made[-2] >= first)
            if after_two:
                times[:] = -np.inf
            elif after_time:
                kept = text[self._ends]
                text[:] = -np.inf
                text[self._ends] = kept
            last = max((token for token in made if token >= first), default=first - 1)
            # The next segment may begin where one ends, and no segment is empty.
            times[: last - first + (0 if after_time and not after_two else 1)] = -np.inf
            if _log_sum(times) > text.max(initial=-np.inf):
                text[:] = -np.inf
        self._logits, self._normalizer = row, _log_sum(row)

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""
        if self._logits is not None:
            self.sum_logprob += float(self._logits[token_id]) - self._normalizer
        self._logits = None
        self._made.append(token_id)

    def copy(self) -> Self:
        """See `Constraint`."""
        found = type(self)(self._tokens)
        found._made = list(self._made)
        found.sum_logprob = self.sum_logprob
        return found


class OneOf:
    """A single token, one of a few: which language is spoken."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)

    @property
    def finished(self) -> bool:
        return False

    def restrict(self, row: Array) -> None:
        """See `Constraint`."""
        kept = row[self._ids]
        row[:] = -np.inf
        row[self._ids] = kept

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""

    def copy(self) -> Self:
        """See `Constraint`."""
        return type(self)(self._ids)


def _log_sum(logits: Array) -> float:
    """The logarithm of the sum of exponentials; -inf of none."""
    peak = float(logits.max(initial=-np.inf))
    if not np.isfinite(peak):
        return peak
    return peak + float(np.log(np.exp(logits.astype(np.float64) - peak).sum()))
