"""What came of a sound: its text, in segments with their times; also as subtitles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paddock.runtime.speech.speech_tokens import SpeechTask


@dataclass(frozen=True)
class Segment:
    """A stretch of speech, as Whisper cuts it."""

    id: int
    seek: int
    """Where the window that it was heard in begins, in frames of 0.01 s."""
    start: float
    """Seconds from the beginning of the sound."""
    end: float
    text: str
    tokens: tuple[int, ...]
    """With those of its times."""
    temperature: float
    """At which its window was written down."""
    avg_logprob: float
    """Of its window's tokens."""
    compression_ratio: float
    """Of its window's text: what repeats itself is compressed well."""
    no_speech_prob: float
    """That nobody speaks in its window; 0 where a hundred other tokens are likelier."""


@dataclass(frozen=True)
class Transcript:
    """What is said in a sound."""

    text: str
    segments: tuple[Segment, ...]
    language: str
    """The code of the language that is spoken, as asked or as heard."""
    task: SpeechTask
    duration: float
    """Seconds of the sound."""
    prompt_tokens: int
    completion_tokens: int


def srt(segments: Sequence[Segment]) -> str:
    """Subtitles in the form of SubRip."""
    return "".join(
        f"{number}\n{_time(s.start, ',', hours=True)} --> {_time(s.end, ',', hours=True)}\n"
        f"{_line(s)}\n\n"
        for number, s in enumerate(segments, 1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """Subtitles in the form of WebVTT, https://www.w3.org/TR/webvtt1/."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(s.start, '.')} --> {_time(s.end, '.')}\n{_line(s)}\n\n" for s in segments
    )


def _line(segment: Segment) -> str:
    # An arrow would be read as the times of a cue.
    return " ".join(segment.text.split()).replace("-->", "->")


def _time(seconds: float, point: str, *, hours: bool = False) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    h, minutes = divmod(minutes, 60)
    before = f"{h:02d}:" if h or hours else ""
    return f"{before}{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
