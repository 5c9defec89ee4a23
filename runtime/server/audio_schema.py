"""`/v1/audio/...` as OpenAI has it: a form with a file in, texts with times out."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from paddock.runtime.speech.languages import LANGUAGES
from paddock.runtime.speech.transcript import Segment, Transcript

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]


class TranslationForm(BaseModel):
    """A field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    file: UploadFile
    """WAV, FLAC, OGG (Vorbis, Opus) or MP3."""
    model: str
    prompt: Annotated[str, Field(max_length=1 << 16)] | None = None
    """Text that came before."""
    response_format: Format = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0: the likeliest tokens, and more chance where these repeat themselves or are unlikely."""


class TranscriptionForm(TranslationForm):
    language: Annotated[str, Field(min_length=1, max_length=40)] | None = None
    """That is spoken: a code (`fr`) or a name; none: it is heard."""
    timestamp_granularities: Annotated[
        list[Literal["segment", "word"]],
        Field(alias="timestamp_granularities[]", max_length=2),
    ] = []
    """Of verbose_json; times of words are not to be had here."""
    stream: bool = False
    """Segments as events, as soon as each is final."""


class Duration(BaseModel):
    type: Literal["duration"] = "duration"
    seconds: float


class Transcription(BaseModel):
    text: str
    usage: Duration


class TranscriptionSegment(BaseModel):
    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    """0 where a hundred other tokens are likelier."""


class VerboseTranscription(BaseModel):
    task: Literal["transcribe", "translate"]
    language: str
    """Its English name: of the speech, or of the translation."""
    duration: float
    text: str
    segments: list[TranscriptionSegment]
    usage: Duration


class TextDelta(BaseModel):
    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class InputTokenDetails(BaseModel):
    audio_tokens: int
    text_tokens: int


class TokenUsage(BaseModel):
    type: Literal["tokens"] = "tokens"
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: InputTokenDetails


class TextDone(BaseModel):
    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: TokenUsage


def verbose(found: Transcript) -> VerboseTranscription:
    spoken = "en" if found.task == "translate" else found.language
    return VerboseTranscription(
        task=found.task,
        language=LANGUAGES.get(spoken, spoken),
        duration=found.duration,
        text=found.text,
        segments=[_segment(segment) for segment in found.segments],
        usage=Duration(seconds=found.duration),
    )


def _segment(segment: Segment) -> TranscriptionSegment:
    return TranscriptionSegment(
        id=segment.id,
        seek=segment.seek,
        start=segment.start,
        end=segment.end,
        text=segment.text,
        tokens=list(segment.tokens),
        temperature=segment.temperature,
        avg_logprob=segment.avg_logprob,
        compression_ratio=segment.compression_ratio,
        no_speech_prob=segment.no_speech_prob,
    )
