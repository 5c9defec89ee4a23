"""Writing down a sound of any length, window by window.

The loop is that of `transcribe` in transcribe.py of github.com/openai/whisper (section 4.5 of the
paper): a window is heard, written down with times, cut into segments, and the next one begins
where the last whole segment ends. What is written is told to the next window. Where a window's
text repeats itself or is unlikely, it is written anew at a higher temperature.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.audio.log_mel import (
    FRAMES_PER_SECOND,
    SAMPLE_RATE,
    checked_sound,
    log_mel,
    windows,
)
from paddock.runtime.errors import RequestError
from paddock.runtime.outputs import RequestResult
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.speech.sound_prompt import SoundPrompt
from paddock.runtime.speech.speech_tokens import SpeechTask, SpeechTokens
from paddock.runtime.speech.timestamp_rules import OneOf, TimestampRules
from paddock.runtime.speech.transcript import Segment, Transcript
from paddock.runtime.text.tokenizer import Tokenizer

STEP = 0.02
"""Seconds between neighbouring times, and of a place of the encoder."""
HOTTER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
REPEATS_ABOVE = 2.4
"""Times that text is longer than zlib makes it."""
UNLIKELY_BELOW = -1.0
"""Mean log-probability of a window's tokens."""
SILENT_ABOVE = 0.6
"""Probability that nobody speaks."""
FORGOTTEN_ABOVE = 0.5
"""What is written at a higher temperature is not told to the next window."""
_LIKELIEST = 100


@dataclass(frozen=True)
class Hearing:
    """What a model that hears is asked with."""

    tokens: SpeechTokens
    tokenizer: Tokenizer
    places: int
    bands: int
    context: int
    """Tokens of the longest answer, with those it begins with."""
    defaults: Mapping[str, Any]
    """Fields of `SamplingParams`."""
    language: str | None = None
    """The code of the language that is spoken where a request says none; None: it is heard."""

    @property
    def frames(self) -> int:
        """Of a window; each is 0.01 s."""
        return 2 * self.places

    def mel(self, samples: Array) -> Array:
        """What is heard of samples f32, 16000 a second: [bands, frames]. Raises `RequestError`.

        A sound that one window holds is followed by silence, as the model was trained.
        """
        samples = checked_sound(samples)
        window = self.frames / FRAMES_PER_SECOND
        if len(samples) <= window * SAMPLE_RATE:
            return log_mel(samples, self.bands, window)
        return log_mel(samples, self.bands, None)


@dataclass(frozen=True)
class Asked:
    """What is asked of a sound."""

    task: SpeechTask = "transcribe"
    language: str | None = None
    """Code or name; None: the recipe's, or what is heard in the first window."""
    prompt: str = ""
    """Text that came before, whose style and spelling the model takes up."""
    temperature: float = 0.0
    """0: the likeliest tokens, and more chance where these are no good."""


class Listening:
    """One sound on its way: `ask` says what the engine is to be asked, `tell` what it said.

    Until `ask` gives None; `transcript` is whole then. It does no waiting of its own, so that
    threads and event loops can both drive it.
    """

    def __init__(self, hearing: Hearing, samples: Array, asked: Asked) -> None:
        """Raises `RequestError` for a language or a task that the model does not know."""
        self._hearing = hearing
        self._asked = asked
        tokens = hearing.tokens
        spoken = asked.language if asked.language is not None else hearing.language
        if spoken is None and not tokens.languages:
            spoken = "en"
        self._language = None if spoken is None else tokens.language(spoken)
        tokens.answer(self._language or next(iter(tokens.languages)), asked.task)
        self._mel = hearing.mel(samples)
        self._duration = len(samples) / SAMPLE_RATE
        self._end = max(len(samples) * FRAMES_PER_SECOND // SAMPLE_RATE, 1)
        self._seek = 0
        self._told = self._before(asked.prompt)
        self._temperatures = HOTTER if asked.temperature == 0 else (asked.temperature,)
        self._attempt = 0
        self._rules: TimestampRules | None = None
        self._features: Array | None = None
        self._segments: list[Segment] = []
        self._prompt_tokens = self._completion_tokens = 0

    @property
    def transcript(self) -> Transcript:
        """What was heard so far."""
        return Transcript(
            text="".join(segment.text for segment in self._segments).strip(),
            segments=tuple(self._segments),
            language=self._language or "",
            task=self._asked.task,
            duration=self._duration,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
        )

    def ask(self) -> tuple[SoundPrompt, SamplingParams] | None:
        """The next question; None: all is heard."""
        if self._seek >= self._end:
            return None
        if self._features is None:
            self._features = self._window()
        tokens = self._hearing.tokens
        if self._language is None:
            which = SoundPrompt(
                self._features, (tokens.begin,), OneOf(list(tokens.languages.values()))
            )
            return which, self._params(temperature=0.0, max_tokens=1)
        answer = tokens.answer(self._language, self._asked.task)
        before = self._context()
        self._rules = TimestampRules(tokens)
        asked = SoundPrompt(
            self._features,
            (*before, *answer),
            self._rules,
            # Behind the first token of the answer, which is how silence is told.
            (len(before), len(before) + 1) if len(answer) > 1 else None,
        )
        told = "prompt_logprobs" if asked.told else "logprobs"
        params = self._params(
            temperature=self._temperatures[self._attempt],
            max_tokens=self._most_tokens(),
            **{told: _LIKELIEST},
        )
        return asked, params

    def tell(self, result: RequestResult) -> list[Segment]:
        """The answer to the last question. Returns the segments that are final now."""
        tokens = self._hearing.tokens
        [sequence] = result.sequences
        self._prompt_tokens += len(result.prompt_token_ids)
        self._completion_tokens += len(sequence.token_ids)
        if self._language is None:
            code_of = {token: code for code, token in tokens.languages.items()}
            self._language = code_of[sequence.token_ids[0]]
            return []
        rules, self._rules = self._rules, None
        assert rules is not None
        made = [token for token in sequence.token_ids if token not in tokens.ends]
        text = self._text(made)
        temperature = self._temperatures[self._attempt]
        avg_logprob = rules.sum_logprob / (len(made) + 1)
        ratio = _compression_ratio(text)
        silence = self._silence(result)
        silent = silence > SILENT_ABOVE and avg_logprob < UNLIKELY_BELOW
        bad = ratio > REPEATS_ABOVE or avg_logprob < UNLIKELY_BELOW
        if bad and not silent and self._attempt + 1 < len(self._temperatures):
            self._attempt += 1
            return []
        self._attempt, self._features = 0, None
        size = min(self._hearing.frames, self._end - self._seek)
        if silent:
            self._seek += size
            return []
        pieces, advance = cut(made, size, tokens)
        found: list[Segment] = []
        for start, end, some in pieces:
            words = self._text(some)
            if words.strip() and end > start:
                found.append(
                    Segment(
                        id=len(self._segments) + len(found),
                        seek=self._seek,
                        start=round(self._seek / FRAMES_PER_SECOND + start, 2),
                        end=round(self._seek / FRAMES_PER_SECOND + end, 2),
                        text=words,
                        tokens=tuple(some),
                        temperature=temperature,
                        avg_logprob=avg_logprob,
                        compression_ratio=ratio,
                        no_speech_prob=silence,
                    )
                )
        if temperature > FORGOTTEN_ABOVE:
            self._told = []
        else:
            self._told += [token for segment in found for token in segment.tokens]
        self._segments += found
        self._seek += advance
        return found

    def _window(self) -> Array:
        frames = self._hearing.frames
        mel = self._mel[:, self._seek : self._seek + frames]
        return windows(np.pad(mel, ((0, 0), (0, frames - mel.shape[1]))))

    def _before(self, prompt: str) -> list[int]:
        """Text tokens of a prompt: what steers the model is not the asker's to write."""
        if not prompt.strip():
            return []
        tokens, tokenizer = self._hearing.tokens, self._hearing.tokenizer
        if tokens.previous is None:
            raise RequestError("prompt: this model was not trained with text that came before")
        ids = tokenizer.encode(" " + prompt.strip(), add_special_tokens=False)
        return [i for i in ids if i < tokens.first_time and not tokenizer.is_special(i)]

    def _context(self) -> tuple[int, ...]:
        """What came before, as the model is told of it: half of its context at most."""
        previous = self._hearing.tokens.previous
        room = self._hearing.context // 2 - 1
        if previous is None or not self._told or room < 1:
            return ()
        return previous, *self._told[-room:]

    def _most_tokens(self) -> int:
        half = max(self._hearing.context // 2, 1)
        return min(half, self._hearing.defaults.get("max_tokens", half))

    def _params(self, **given: Any) -> SamplingParams:
        return SamplingParams(**{**self._hearing.defaults, **given})

    def _text(self, token_ids: Sequence[int]) -> str:
        first = self._hearing.tokens.first_time
        return self._hearing.tokenizer.decode([i for i in token_ids if i < first])

    def _silence(self, result: RequestResult) -> float:
        """The probability that nobody speaks."""
        [sequence] = result.sequences
        told = result.prompt_logprobs or (sequence.logprobs or ())[:1]
        [behind] = [one for one in told if one is not None]
        return math.exp(dict(behind.top_logprobs).get(self._hearing.tokens.no_speech, -math.inf))


def cut(
    made: Sequence[int], size: int, tokens: SpeechTokens
) -> tuple[list[tuple[float, float, Sequence[int]]], int]:
    """Start and end in seconds and tokens of each segment that a window's tokens make, and how
    many of its `size` frames are heard then.

    A segment ends where two times follow each other. What follows the last of these pairs was cut
    by the window's end, and is heard again, unless a single time ends it, behind which nobody
    speaks.
    """
    first = tokens.first_time
    is_time = [token >= first for token in made]

    def seconds(token: int) -> float:
        return (token - first) * STEP

    ends = [i for i in range(1, len(made)) if is_time[i - 1] and is_time[i]]
    if not ends:
        times = [token for token in made if token > first]
        last = seconds(times[-1]) if times else size / FRAMES_PER_SECOND
        return [(0.0, last, made)], size
    whole = is_time[-2:] == [False, True]
    if whole:
        ends.append(len(made))
    pieces = []
    begin = 0
    for end in ends:
        some = made[begin:end]
        pieces.append((seconds(some[0]), seconds(some[-1]), some))
        begin = end
    return pieces, size if whole else (made[begin - 1] - first) * 2


def _compression_ratio(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))
