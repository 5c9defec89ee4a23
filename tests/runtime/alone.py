"""What a request has to come to: run alone, by the shortest program that can be checked by eye."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddock.runtime.sampling.sampler import SampledToken, SequenceSampler, prompt_logprobs, sample
from paddock.runtime.sampling.sampling_params import SamplingParams
from tests.runtime.history_session import history_logits
from tests.runtime.letter_tokenizer import END, VOCAB_SIZE, LetterTokenizer, text_of


@dataclass
class Alone:
    """One sequence's outcome."""

    token_ids: list[int]
    text: str
    logprobs: list[SampledToken]
    finish_reason: str
    stop_reason: int | str | None


def run_alone(prompt: list[int], params: SamplingParams, index: int, context: int) -> Alone:
    """Sequence `index` of a request, from nothing but the model and the sampler."""
    bad_words = [LetterTokenizer().encode(word) for word in params.bad_words]
    sampler = SequenceSampler(
        params,
        prompt_token_ids=prompt,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=() if params.ignore_eos else {END},
        bad_words_token_ids=bad_words,
        index=index,
    )
    room = context - len(prompt)
    most = room if params.max_tokens is None else min(room, params.max_tokens)
    made: list[int] = []
    logprobs: list[SampledToken] = []

    def outcome(text: str, reason: str, stop_reason: int | str | None = None) -> Alone:
        return Alone(made, text, logprobs, reason, stop_reason)

    while True:
        logits = history_logits(np.array(prompt + made), VOCAB_SIZE)[None]
        token = sample(logits, [sampler])[0]
        sampler.append(token.token_id)
        before = text_of(made, whole=True)
        made.append(token.token_id)
        logprobs.append(token)
        ends = token.token_id == END and not params.ignore_eos
        if len(made) >= params.min_tokens and (ends or token.token_id in params.stop_token_ids):
            shown = made if params.include_stop else made[:-1]
            text = text_of(shown, whole=True)
            if len(made) > params.min_tokens and params.include_stop:
                found = find_stop(text, len(before), params.stop)
                if found is not None:
                    return outcome(text[: found[0] + len(found[1])], "stop", found[1])
            return outcome(text_of(shown), "stop", None if ends else token.token_id)
        text = text_of(made, whole=True)
        if len(made) > params.min_tokens:
            found = find_stop(text, len(before), params.stop)
            if found is not None:
                end = found[0] + (len(found[1]) if params.include_stop else 0)
                return outcome(text[:end], "stop", found[1])
        if len(made) >= most:
            return outcome(text_of(made), "length")


def run_alone_prompt_logprobs(prompt: list[int], count: int) -> list[SampledToken | None]:
    """One for each token of the prompt."""
    logits = np.stack(
        [history_logits(np.array(prompt[:end]), VOCAB_SIZE) for end in range(1, len(prompt) + 1)]
    )
    return [None, *prompt_logprobs(logits[:-1], np.array(prompt[1:]), count)]


def find_stop(text: str, seen: int, stop: tuple[str, ...]) -> tuple[int, str] | None:
    """The stop string that is complete first in `text[seen:]`, the longest of several."""
    for end in range(seen + 1, len(text) + 1):
        for string in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(string):
                return end - len(string), string
    return None
