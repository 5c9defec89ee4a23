"""The tokens that steer Whisper, as generation_config.json names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paddock.runtime.errors import RequestError
from paddock.runtime.speech.languages import LANGUAGES
from paddock.runtime.text.tokenizer import Tokenizer

SpeechTask = Literal["transcribe", "translate"]
"""Write what is said in its own language, or in English."""


@dataclass(frozen=True)
class SpeechTokens:
    begin: int
    """Every answer begins with it, but for what came before."""
    ends: tuple[int, ...]
    languages: Mapping[str, int]
    """By code, e.g. `fr`; none where the model knows English alone."""
    tasks: Mapping[str, int]
    no_times: int
    previous: int | None
    """Stands before the text that came before; None: the model was not trained with it."""
    latest_first: int
    """The first time of an answer is at most so many steps of 0.02 s."""

    @property
    def first_time(self) -> int:
        """The token of 0.00 seconds; each following one is 0.02 s later."""
        return self.no_times + 1

    @property
    def no_speech(self) -> int:
        """Its probability after `begin` is that nobody speaks."""
        return self.no_times - 1

    def language(self, asked: str) -> str:
        """The code of a language that a request names by code or by name. Raises `RequestError`."""
        wanted = asked.strip().lower()
        code = _CODES.get(wanted, wanted)
        known = self.languages or {"en": 0}
        if code not in known:
            listed = ", ".join(sorted(known)) if len(known) < 120 else f"{len(known)} others"
            raise RequestError(
                f"language: {asked[:40]!r} is none that this model was trained for: {listed}"
            )
        return code

    def answer(self, language: str, task: SpeechTask) -> tuple[int, ...]:
        """The tokens with which an answer with times begins. Raises `RequestError`."""
        if not self.languages:
            if task != "transcribe":
                raise RequestError("this model writes down English alone; it translates nothing")
            return (self.begin,)
        if task not in self.tasks:
            raise RequestError(f"this model was not trained to {task}")
        return self.begin, self.languages[language], self.tasks[task]


def read_speech_tokens(
    generation: Mapping[str, Any], begins: int, tokenizer: Tokenizer
) -> SpeechTokens | None:
    """Of generation_config.json's contents; None where it says no token for times.

    `begins` is the first token of every answer.
    """
    no_times = generation.get("no_timestamps_token_id")
    if type(no_times) is not int or no_times < 1:
        return None
    languages = _ids(generation.get("lang_to_id"))
    previous = generation.get("prev_sot_token_id")
    if type(previous) is not int:
        previous = tokenizer.token_id("<|startofprev|>")
    latest = generation.get("max_initial_timestamp_index")
    return SpeechTokens(
        begin=begins,
        ends=tuple(sorted(tokenizer.eos_token_ids)),
        languages={name.removeprefix("<|").removesuffix("|>"): i for name, i in languages.items()},
        tasks=_ids(generation.get("task_to_id")),
        no_times=no_times,
        previous=previous,
        latest_first=latest if type(latest) is int and latest >= 0 else 50,
    )


def _ids(found: Any) -> dict[str, int]:
    if not isinstance(found, dict):
        return {}
    return {name: i for name, i in found.items() if type(i) is int and i >= 0}


_CODES = {name: code for code, name in LANGUAGES.items()}
