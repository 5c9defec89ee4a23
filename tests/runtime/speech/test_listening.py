"""Long sounds, window by window, against transformers' own loop; and what it falls back to."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock import LLM
from paddock.graph.dtype import Array
from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.logprobs import SampledToken
from paddock.runtime.speech import listening
from paddock.runtime.speech.listening import Asked, Hearing, Listening, cut
from paddock.runtime.speech.speech_tokens import SpeechTokens, read_speech_tokens
from paddock.runtime.speech.timestamp_rules import TimestampRules
from paddock.runtime.speech.transcript import Segment, srt, vtt
from tests.models.saved_whisper import SECONDS, TIMES_TOO, WORDS, save, sound

torch_there = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
EXACT = ("dtype=f32", "engine.cache_dtype=f32", "sampling.max_tokens=16")
TOKENS = SpeechTokens(
    begin=101,
    ends=(100,),
    languages={"en": 102, "fr": 103},
    tasks={"transcribe": 104},
    no_times=110,
    previous=105,
    latest_first=4,
)
"""Text below 100, times from 111 on."""


@pytest.fixture(scope="module", params=[WORDS, TIMES_TOO], ids=["words", "times"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LLM, dict[str, int], Any]]:
    folder = tmp_path_factory.mktemp("hears")
    ids, model = save(folder, request.param)
    with LLM(str(folder), *EXACT) as llm:
        yield llm, ids, model


def theirs(model: Any, mel: Array, first: int, **options: Any) -> list[tuple[float, list[int]]]:
    """Begin and tokens of transformers' segments of what is heard."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = model.generate(
            torch.tensor(mel)[None],
            return_timestamps=True,
            return_segments=True,
            condition_on_prev_tokens=True,
            temperature=0.0,
            max_new_tokens=16,
            num_beams=1,
            **options,
        )
    found = []
    for segment in made["segments"][0]:
        tokens = segment["tokens"].tolist()
        if len(tokens) > 1 and min(tokens[-2:]) >= first:
            tokens.pop()  # the begin of what was cut, by which they tell that it was
        found.append((round(float(segment["start"]), 2), tokens))
    return found


@torch_there
def test_segments_are_those_of_transformers(
    saved: tuple[LLM, dict[str, int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, the rules for times, where the next window begins, and what it is told."""
    llm, ids, model = saved
    monkeypatch.setattr(listening, "HOTTER", (0.0,))
    monkeypatch.setattr(listening, "SILENT_ABOVE", 2.0)
    hearing = llm.running.hearing
    assert hearing is not None
    sounds = [sound(seconds, seed) for seconds, seed in ((SECONDS, 1), (1.9, 2), (3.3, 3))]
    for task in ("transcribe", "translate"):
        # All at once: the windows of one sound follow each other, those of several share steps.
        found = llm.transcribe(sounds, task=task, language="german")
        for samples, transcript in zip(sounds, found, strict=True):
            expected = theirs(
                model, hearing.mel(samples), ids["<|0.00|>"], language="<|de|>", task=task
            )
            assert [(s.start, list(s.tokens)) for s in transcript.segments] == expected
            assert transcript.language == "de"
            assert transcript.duration == pytest.approx(len(samples) / 16_000)
        assert len(found[2].segments) > 4
        assert found[1].text.split() != found[2].text.split()


@torch_there
def test_the_language_is_heard(saved: tuple[LLM, dict[str, int], Any]) -> None:
    import torch

    llm, ids, model = saved
    hearing = llm.running.hearing
    assert hearing is not None
    sounds = [sound(0.5, seed) for seed in range(5)]
    codes = {i: name.strip("<|>") for name, i in ids.items()}
    for samples, transcript in zip(sounds, llm.transcribe(sounds), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            heard = model.detect_language(torch.tensor(hearing.mel(samples))[None])
        assert transcript.language == codes[int(heard[0])]


@torch_there
def test_what_came_before_is_told(saved: tuple[LLM, dict[str, int], Any]) -> None:
    """Without the special tokens that its text may spell."""
    llm, ids, _ = saved
    hearing = llm.running.hearing
    assert hearing is not None
    first = Listening(hearing, sound(0.4), Asked(language="en", prompt=" a <|de|><|0.20|>file "))
    asked = first.ask()
    assert asked is not None
    [previous, *told], answer = asked[0].begins[:-3], asked[0].begins[-3:]
    assert answer == (ids["<|startoftranscript|>"], ids["<|en|>"], ids["<|transcribe|>"])
    assert previous == ids["<|startofprev|>"]
    assert llm.tokenizer.decode(told) == " a file"
    with pytest.raises(RequestError, match="language: 'klingon' is none that this model"):
        Listening(hearing, sound(0.4), Asked(language="klingon"))


@torch_there
def test_samples_are_a_sound(saved: tuple[LLM, dict[str, int], Any]) -> None:
    llm, _, _ = saved
    for wrong in (np.zeros(0, np.float32), np.zeros((2, 9), np.float32), np.zeros(9, np.int16)):
        with pytest.raises(RequestError, match="one row of finite floats"):
            llm.transcribe([wrong])
    with pytest.raises(RequestError, match="text or token ids, and this model takes a finite"):
        llm.generate("The file")


class Scripted:
    """A loop's answers that are made up, for what a drawn model does not do."""

    def __init__(self, hearing: Hearing, seconds: float, asked: Asked) -> None:
        self.listening = Listening(hearing, sound(seconds), asked)
        self.temperatures: list[float] = []

    def say(self, tokens: list[int], logprob: float, silence: float = 0.0) -> list[Segment]:
        asked = self.listening.ask()
        assert asked is not None
        self.temperatures.append(asked[1].temperature)
        rules = asked[0].constraint
        assert isinstance(rules, TimestampRules)
        rules.sum_logprob = logprob * (len(tokens) + 1)
        likeliest = ((TOKENS.no_speech, float(np.log(max(silence, 1e-9)))),)
        told = SampledToken(0, -1.0, likeliest)
        answer = _Result((_Sequence((*tokens, *TOKENS.ends)),), (None, None, told))
        return self.listening.tell(answer)  # type: ignore[arg-type]


class _Sequence:
    def __init__(self, token_ids: tuple[int, ...]) -> None:
        self.token_ids = token_ids


class _Result:
    prompt_token_ids = (0, 0)

    def __init__(self, sequences: tuple[_Sequence, ...], told: tuple[Any, ...]) -> None:
        self.sequences, self.prompt_logprobs = sequences, told


class Letters:
    """A tokenizer of letters."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture
def hearing() -> Hearing:
    return Hearing(TOKENS, Letters(), places=30, bands=8, context=64, defaults={})  # type: ignore[arg-type]


def test_what_is_unlikely_or_repeats_itself_is_written_anew(hearing: Hearing) -> None:
    talk = Scripted(hearing, 0.6, Asked(language="en"))
    assert talk.say([111, 1, 2, 3, 120], logprob=-1.5) == []
    assert talk.say([111, *[7] * 60, 120], logprob=-0.1) == []
    [segment] = talk.say([111, 1, 2, 3, 120], logprob=-0.5)
    assert talk.temperatures == [0.0, 0.2, 0.4]
    assert (segment.temperature, segment.text, segment.end) == (0.4, "bcd", 0.18)
    assert talk.listening.ask() is None


def test_the_hottest_is_taken_as_it_is_and_told_to_nobody(hearing: Hearing) -> None:
    talk = Scripted(hearing, 1.1, Asked(language="en"))
    for _ in range(5):
        assert talk.say([111, 1, 2, 120], logprob=-9) == []
    [segment] = talk.say([111, 1, 2, 120], logprob=-9)
    assert segment.temperature == 1.0
    asked = talk.listening.ask()
    assert asked is not None
    assert asked[0].begins == (101, 102, 104)  # and at temperature 0 it would be told
    assert asked[1].temperature == 0
    [segment] = talk.say([111, 1, 2, 120], logprob=-0.5)
    assert (segment.start, segment.seek) == (0.6, 60)


def test_a_temperature_that_is_asked_for_is_kept(hearing: Hearing) -> None:
    talk = Scripted(hearing, 0.6, Asked(language="en", temperature=0.3))
    assert len(talk.say([111, 1, 2, 120], logprob=-9)) == 1
    assert talk.temperatures == [0.3]


def test_silence_is_left_out(hearing: Hearing) -> None:
    talk = Scripted(hearing, 1.1, Asked(language="en"))
    assert talk.say([111, 1, 2, 120], logprob=-1.5, silence=0.7) == []
    asked = talk.listening.ask()
    assert asked is not None
    [segment] = talk.say([111, 1, 2, 120], logprob=-0.5, silence=0.7)  # but not what is likely
    assert segment.seek == 60
    assert segment.no_speech_prob == pytest.approx(0.7)
    assert talk.listening.transcript.text == "bc"


@pytest.mark.parametrize(
    ("made", "pieces", "advance"),
    [
        # Whole segments, and one that the window's end cuts.
        ([111, 1, 121, 121, 2, 131, 131, 3], [(0.0, 0.2), (0.2, 0.4)], 40),
        # A single time at the end: nobody speaks behind it.
        ([111, 1, 121, 121, 2, 131], [(0.0, 0.2), (0.2, 0.4)], 60),
        ([113, 1, 2, 121], [(0.0, 0.2)], 60),
        ([111, 1, 2], [(0.0, 0.6)], 60),
        ([111], [(0.0, 0.6)], 60),
    ],
)
def test_windows_are_cut_where_two_times_meet(
    made: list[int], pieces: list[tuple[float, float]], advance: int
) -> None:
    found, heard = cut(made, 60, TOKENS)
    assert [(round(start, 6), round(end, 6)) for start, end, _ in found] == pieces
    assert heard == advance


@torch_there
def test_rules_are_those_of_transformers() -> None:
    import torch
    from transformers import GenerationConfig
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    config = GenerationConfig(
        no_timestamps_token_id=TOKENS.no_times, eos_token_id=100, max_initial_timestamp_index=4
    )
    random = np.random.default_rng(3)
    special = np.arange(101, 111)  # which a checkpoint's suppress_tokens forbid
    forced = 0
    for _ in range(40):
        rules, made = TimestampRules(TOKENS), [101]
        processor = WhisperTimeStampLogitsProcessor(config, begin_index=1)
        sum_logprob = 0.0
        for _ in range(25):
            row = (3 * random.standard_normal(142)).astype(np.float32)
            row[special] = -np.inf
            row[111:] += 2 * random.standard_normal()
            expected = processor(torch.tensor([made]), torch.tensor(row)[None])[0]
            forced += int((row[:100] > -np.inf).any() and (expected[:100] == -np.inf).all())
            rules.restrict(row)
            np.testing.assert_array_equal(np.isfinite(row), torch.isfinite(expected).numpy())
            token = int(random.choice(np.flatnonzero(np.isfinite(row))))
            sum_logprob += float(torch.log_softmax(expected.double(), -1)[token])
            rules.accept(token)
            made.append(token)
            if token == 100:
                break
        assert rules.sum_logprob == pytest.approx(sum_logprob, abs=1e-4)
    assert forced > 50


def test_tokens_are_read_from_generation_config(tmp_path: Path) -> None:
    class Named:
        eos_token_ids = frozenset({7})

        def token_id(self, token: str) -> int | None:
            return {"<|startofprev|>": 50361}.get(token)

    generation = {
        "lang_to_id": {"<|en|>": 50259, "<|haw|>": 50352, "odd": "x"},
        "task_to_id": {"transcribe": 50359, "translate": 50358},
        "no_timestamps_token_id": 50363,
    }
    found = read_speech_tokens(json.loads(json.dumps(generation)), 50258, Named())  # type: ignore[arg-type]
    assert found is not None
    assert (found.first_time, found.no_speech, found.previous) == (50364, 50362, 50361)
    assert found.answer("haw", "translate") == (50258, 50352, 50358)
    assert found.language("Hawaiian") == "haw"
    english = read_speech_tokens({"no_timestamps_token_id": 50362}, 50257, Named())  # type: ignore[arg-type]
    assert english is not None
    assert english.answer("en", "transcribe") == (50257,)
    with pytest.raises(RequestError, match="English alone; it translates nothing"):
        english.answer("en", "translate")
    with pytest.raises(RequestError, match="language: 'fr' is none"):
        english.language("fr")
    assert read_speech_tokens({}, 1, Named()) is None  # type: ignore[arg-type]


def test_subtitles() -> None:
    def segment(start: float, end: float, text: str) -> Segment:
        return Segment(0, 0, start, end, text, (), 0.0, 0.0, 1.0, 0.0)

    segments = [segment(0.0, 2.5, " Well,\nnow"), segment(3599.98, 3661.999, " a --> b")]
    assert srt(segments) == (
        "1\n00:00:00,000 --> 00:00:02,500\nWell, now\n\n"
        "2\n00:59:59,980 --> 01:01:01,999\na -> b\n\n"
    )
    assert vtt(segments) == (
        "WEBVTT\n\n00:00.000 --> 00:02.500\nWell, now\n\n59:59.980 --> 01:01:01.999\na -> b\n\n"
    )
