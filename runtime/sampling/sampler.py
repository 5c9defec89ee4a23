"""Choosing the next token of each sequence of a batch.

A row of logits goes through these steps, in the order of vLLM's `v1/sample/sampler.py`:

1. logit bias: added (OpenAI's `logit_bias`);
2. repetition penalty: logits of tokens in prompt or output are divided by it where positive and
   multiplied where negative (Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1;
   for negative logits as in transformers' `RepetitionPenaltyLogitsProcessor`);
3. frequency and presence penalty: `frequency * count + presence` is subtracted from logits of
   tokens in the output (OpenAI's API reference; vLLM's `apply_penalties`);
4. bad words, and end and stop tokens before `min_tokens`: -inf (transformers'
   `NoBadWordsLogitsProcessor`, `MinNewTokensLengthLogitsProcessor`), and what a grammar forbids;
5. greedy sequences take the largest logit, of equal ones the lowest id; the others divide by
   the temperature, filter (`paddock.runtime.sampling.token_filters`) and draw.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.constraint import Constraint, ConstraintError
from paddock.runtime.sampling.logprobs import (
    LogitsError,
    SampledToken,
    describe,
    prompt_logprobs,
    report,
)
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.sampling.token_filters import draw

__all__ = ["LogitsError", "SampledToken", "SequenceSampler", "prompt_logprobs", "sample"]


class SequenceSampler:
    """One sequence's share of sampling: its tokens so far and its random numbers.

    Random numbers come from a stream of the sequence's own, made of the request's seed and the
    sequence's index: neither the batch nor the process changes them.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_token_ids: Sequence[int] | Array,
        vocab_size: int,
        eos_token_ids: Collection[int] = (),
        bad_words_token_ids: Sequence[Sequence[int]] = (),
        index: int = 0,
        name: str = "",
        constraint: Constraint | None = None,
    ) -> None:
        """index: which of the request's `n` sequences; name: what errors call it; constraint: this
        sequence's own.

        Raises `RequestError` where the settings name a token id outside the vocabulary.
        """
        self.params = params
        self.vocab_size = vocab_size
        self.name = name or f"sequence {index}"
        self.generated = 0
        """Tokens appended since the prompt."""
        _check_ids("logit_bias", params.logit_bias, vocab_size)
        _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        ends = {*eos_token_ids, *params.stop_token_ids}
        self._end_ids = np.array(sorted(id_ for id_ in ends if id_ < vocab_size), np.int64)
        self._seen: _Tally | None = None
        if params.repetition_penalty != 1:
            # A tokenizer may know more tokens than the model does; those have no logits.
            prompt = np.asarray(prompt_token_ids, np.int64)
            self._seen = _Tally(prompt[prompt < vocab_size])
        has_output_penalty = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._output = _Tally() if has_output_penalty else None
        possible = [word for word in bad_words_token_ids if word and max(word) < vocab_size]
        self._bad_words = _BadWords(possible, prompt_token_ids)
        self._constraint = constraint
        self._index = index
        self._bits: np.random.PCG64 | None = None
        self._chance: float | None = None

    def append(self, token_id: int) -> None:
        """The sequence goes on with `token_id`; without this, `sample` gives the same again."""
        self.generated += 1
        self._chance = None
        if self._seen is not None:
            self._seen.add(token_id)
        if self._output is not None:
            self._output.add(token_id)
        self._bad_words.add(token_id)
        if self._constraint is not None:
            self._constraint.accept(token_id)

    def spend_chance(self) -> None:
        """The next token's random number is used; `chance` is that of the one behind it."""
        self._chance = None

    @property
    def plain(self) -> bool:
        """Whether every token can be chosen from its logits, and told, without those before it."""
        params = self.params
        return (
            params.logprobs is None
            and params.prompt_logprobs is None
            and params.typical_p == 1
            and params.min_tokens == 0
            and self._bias_ids.size == 0
            and self._seen is None
            and self._output is None
            and not self._bad_words
            and self._constraint is None
        )

    @property
    def complete(self) -> bool:
        """Whether the sequence's grammar lets nothing follow any more."""
        return self._constraint is not None and self._constraint.finished

    @property
    def adjusts(self) -> bool:
        """Whether the next token's logits are changed before a token is chosen."""
        return (
            self._bias_ids.size > 0
            or self._seen is not None
            or (self._output is not None and self.generated > 0)
            or self.generated < self.params.min_tokens
            or self._bad_words.may_ban
            or self._constraint is not None
        )

    def adjust(self, row: Array) -> None:
        """Apply bias, penalties and bans to logits f32 [V], in place."""
        params = self.params
        row[self._bias_ids] += self._bias
        if self._seen is not None:
            ids = self._seen.ids
            values = row[ids]
            penalty = np.float32(params.repetition_penalty)
            row[ids] = np.where(values < 0, values * penalty, values / penalty)
        if self._output is not None:
            frequency = np.float32(params.frequency_penalty)
            presence = np.float32(params.presence_penalty)
            row[self._output.ids] -= frequency * self._output.counts + presence
        if self.generated < params.min_tokens:
            row[self._end_ids] = -np.inf
        row[self._bad_words.banned()] = -np.inf
        if self._constraint is not None:
            self._constraint.restrict(row)

    def chance(self) -> float:
        """The random number in [0, 1) of the next token: the same until `append`."""
        if self._chance is None:
            if self._bits is None:
                seed = self.params.seed
                # SeedSequence takes no negative numbers: -1 is the largest of 64 bits.
                entropy = None if seed is None else seed % 2**64
                self._bits = np.random.PCG64(
                    np.random.SeedSequence(entropy, spawn_key=(self._index,))
                )
            # Raw words, because NumPy promises their stream to stay the same in every version.
            self._chance = (int(self._bits.random_raw()) >> 11) * 2.0**-53
        return self._chance


def sample(logits: Array, samplers: Sequence[SequenceSampler]) -> list[SampledToken]:
    """The next token of each sequence; the samplers are not advanced (see `append`).

    logits: f32 [R, V], left as they are; row r belongs to `samplers[r]`. What a row yields does
    not depend on the other rows, bit for bit. Raises `LogitsError` for rows from which no token
    can be chosen, before anything of the batch has changed: the others can be sampled again.
    """
    rows = len(samplers)
    if logits.shape[0] != rows or any(s.vocab_size != logits.shape[1] for s in samplers):
        sizes = sorted({s.vocab_size for s in samplers})
        raise ValueError(f"logits {logits.shape} for {rows} sequences of vocabulary {sizes}")
    if rows == 0:
        return []
    # argmax finds NaN before any number, so its value shows whether a row can be used.
    likeliest = logits.argmax(axis=1)
    peaks = logits[np.arange(rows), likeliest]
    _refuse(logits, peaks, samplers, range(rows))
    tokens: list[int] = likeliest.tolist()

    adjusted = [i for i, sampler in enumerate(samplers) if sampler.adjusts]
    adjusted_row = {i: logits[i].copy() for i in adjusted}
    adjusted_peak = {}
    for i, row in adjusted_row.items():
        try:
            samplers[i].adjust(row)
        except ConstraintError as error:
            raise LogitsError(f"{samplers[i].name}: {error}", (i,)) from error
        tokens[i] = int(row.argmax())
        adjusted_peak[i] = row[tokens[i]]
        if not np.isfinite(adjusted_peak[i]):
            raise LogitsError(f"{samplers[i].name}: {describe(row)}", (i,))

    by_chance = [i for i, sampler in enumerate(samplers) if not sampler.params.greedy]
    if by_chance:
        drawn = draw(
            [adjusted_row.get(i, logits[i]) for i in by_chance],
            [adjusted_peak.get(i, peaks[i]) for i in by_chance],
            [samplers[i].params for i in by_chance],
            [samplers[i].chance() for i in by_chance],
        )
        for i, token in zip(by_chance, drawn, strict=True):
            tokens[i] = token

    sampled = [SampledToken(token) for token in tokens]
    asked = [i for i, sampler in enumerate(samplers) if sampler.params.logprobs is not None]
    if asked:
        counts = [samplers[i].params.logprobs or 0 for i in asked]
        some = slice(None) if len(asked) == rows else asked
        reported = report(logits[some], peaks[some], [tokens[i] for i in asked], counts)
        for i, token_with_logprobs in zip(asked, reported, strict=True):
            sampled[i] = token_with_logprobs
    return sampled


def _refuse(
    logits: Array, peaks: Array, samplers: Sequence[SequenceSampler], rows: Iterable[int]
) -> None:
    """Raise for rows whose largest logit is no number."""
    finite = np.isfinite(peaks)
    if finite.all():
        return
    broken = tuple(np.flatnonzero(~finite).tolist())
    more = f" (and {len(broken) - 1} more sequences)" if len(broken) > 1 else ""
    first = broken[0]
    raise LogitsError(f"{samplers[first].name}: {describe(logits[first])}{more}", broken)


def _check_ids(field: str, ids: Iterable[int], vocab_size: int) -> None:
    for id_ in ids:
        if id_ >= vocab_size:
            raise RequestError(
                f"{field}: token id {id_} is outside the vocabulary of {vocab_size} tokens"
            )


class _Tally:
    """Which token ids occurred, and how often, as arrays to index logits with."""

    def __init__(self, token_ids: Sequence[int] | Array = ()) -> None:
        ids, counts = np.unique(np.asarray(token_ids, np.int64), return_counts=True)
        self._ids, self._counts = ids, counts.astype(np.float32)
        self._used = ids.size
        self._place = {id_: place for place, id_ in enumerate(ids.tolist())}

    def add(self, token_id: int) -> None:
        place = self._place.get(token_id)
        if place is not None:
            self._counts[place] += 1
            return
        if self._used == self._ids.size:
            room = max(16, 2 * self._used)
            self._ids = np.resize(self._ids, room)
            self._counts = np.resize(self._counts, room)
        self._place[token_id] = self._used
        self._ids[self._used] = token_id
        self._counts[self._used] = 1
        self._used += 1

    @property
    def ids(self) -> Array:
        """i64 [N], each id once."""
        return self._ids[: self._used]

    @property
    def counts(self) -> Array:
        """f32 [N]."""
        return self._counts[: self._used]


class _BadWords:
    """Token sequences that must not be completed."""

    def __init__(
        self, words: Sequence[Sequence[int]], prompt_token_ids: Sequence[int] | Array
    ) -> None:
        self._always = [word[0] for word in words if len(word) == 1]
        self._after: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for word in words:
            if len(word) > 1:
                *prefix, last = word
                self._after.setdefault(prefix[-1], []).append((tuple(prefix), last))
        longest = max((len(word) - 1 for word in words), default=0)
        self._longest = longest
        self._tail = [int(id_) for id_ in prompt_token_ids[-longest:]] if longest else []

    def __bool__(self) -> bool:
        return bool(self._always or self._after)

    @property
    def may_ban(self) -> bool:
        return bool(self._always) or bool(self._tail and self._tail[-1] in self._after)

    def add(self, token_id: int) -> None:
        if self._longest:
            self._tail.append(token_id)
            del self._tail[: -self._longest]

    def banned(self) -> list[int]:
        """Ids that would complete a word."""
        candidates = self._after.get(self._tail[-1], ()) if self._tail else ()
        return self._always + [
            last for prefix, last in candidates if tuple(self._tail[-len(prefix) :]) == prefix
        ]
