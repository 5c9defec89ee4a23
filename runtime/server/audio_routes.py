"""`/v1/audio/transcriptions`, `/v1/audio/translations`: a sound in, what is said in it out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from paddock.runtime.audio.sound_file import SoundLimits, decode
from paddock.runtime.errors import QueueFull, RequestError
from paddock.runtime.scheduling.request import FinishReason
from paddock.runtime.server.api_errors import ApiError, as_api_error, unavailable
from paddock.runtime.server.audio_schema import (
    Duration,
    Format,
    InputTokenDetails,
    TextDelta,
    TextDone,
    TokenUsage,
    Transcription,
    TranscriptionForm,
    TranslationForm,
    VerboseTranscription,
    verbose,
)
from paddock.runtime.server.documented import GENERATING
from paddock.runtime.server.event_stream import event, while_connected
from paddock.runtime.server.increments import finish_of, results
from paddock.runtime.server.piece_stream import PieceStream
from paddock.runtime.server.request_context import RequestContext, context_of
from paddock.runtime.server.served_model import Ask, ServedModel
from paddock.runtime.server.strict_body import StrictRoute
from paddock.runtime.server.usage import usage_of
from paddock.runtime.speech.listening import Asked, Hearing, Listening
from paddock.runtime.speech.transcript import Segment, Transcript, srt, vtt

_TEXT = {"schema": {"type": "string"}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    **GENERATING,
    200: {
        "description": "what is said, in the form of `response_format`",
        "content": {"text/plain": _TEXT},
    },
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    **GENERATING,
    200: {
        "description": "what is said, in the form of `response_format`; with `stream` as events",
        "content": {"text/plain": _TEXT, "text/event-stream": _TEXT},
    },
}


def routes(served: ServedModel, hearing: Hearing) -> APIRouter:
    router = APIRouter(route_class=StrictRoute, tags=["audio"])
    ears = _Ears(served, hearing)
    answer = Transcription | VerboseTranscription

    @router.post("/v1/audio/transcriptions", response_model=answer, responses=_STREAMED)
    async def create_transcription(
        body: Annotated[TranscriptionForm, Form(media_type="multipart/form-data")],
        request: Request,
    ) -> Response:
        """Write down what is said."""
        served.check_name(body.model)
        if "word" in body.timestamp_granularities:
            raise ApiError(
                400,
                "timestamp_granularities: this server gives the times of segments, not of words",
                param="timestamp_granularities",
            )
        if body.timestamp_granularities and body.response_format != "verbose_json":
            raise ApiError(
                400,
                "timestamp_granularities: set response_format to verbose_json with it",
                param="timestamp_granularities",
            )
        if body.stream and body.response_format not in ("json", "text"):
            raise ApiError(
                400, "stream: is of response_format json or text", param="response_format"
            )
        asked = Asked("transcribe", body.language, body.prompt or "", body.temperature)
        if body.stream:
            return await ears.stream(body, asked, request)
        return await while_connected(request, ears.whole(body, asked, request))

    @router.post("/v1/audio/translations", response_model=answer, responses=_ANSWERS)
    async def create_translation(
        body: Annotated[TranslationForm, Form(media_type="multipart/form-data")], request: Request
    ) -> Response:
        """Write down in English what is said in another language."""
        served.check_name(body.model)
        asked = Asked("translate", None, body.prompt or "", body.temperature)
        return await while_connected(request, ears.whole(body, asked, request))

    return router


class _Ears:
    """What the two routes have in common."""

    def __init__(self, served: ServedModel, hearing: Hearing) -> None:
        settings = served.settings
        self._served = served
        self._hearing = hearing
        self._limits = SoundLimits(int(settings.max_audio_mib * (1 << 20)), settings.max_audio_s)
        self._held = _Held(settings.max_audios_s)

    async def whole(self, body: TranslationForm, asked: Asked, request: Request) -> Response:
        context = context_of(request)
        with self._held.sound() as sound:
            listening = await self._listen(body, asked, sound)
            async for _ in self._segments(listening, context):
                pass
            return _response(body.response_format, listening.transcript)

    async def stream(self, body: TranslationForm, asked: Asked, request: Request) -> Response:
        context = context_of(request)
        sound = self._held.take()
        try:
            listening = await while_connected(request, self._listen(body, asked, sound))
        except BaseException:
            sound.leave()
            raise
        return PieceStream(
            self._events(listening, context),
            write_timeout_s=self._served.settings.write_timeout_s,
            on_end=sound.leave,
        )

    async def _listen(self, body: TranslationForm, asked: Asked, sound: _Sound) -> Listening:
        """The sound, decoded beside the event loop. Raises `RequestError`."""
        data = await body.file.read()

        def listen() -> Listening:
            try:
                samples = decode(data, self._limits, told=sound.add)
            except QueueFull:
                raise
            except RequestError as error:
                raise ApiError(400, f"file: {error}", param="file") from None
            return Listening(self._hearing, samples, asked)

        return await self._served.prepare(listen)

    async def _segments(
        self, listening: Listening, context: RequestContext
    ) -> AsyncIterator[list[Segment]]:
        """The segments of each window, as soon as they are final."""
        most = self._served.settings.request_timeout_s
        end = None if most is None else monotonic() + most
        number = 0

        def asks() -> list[Ask]:
            asked = listening.ask()
            if asked is None:
                return []
            left = None if end is None else max(end - monotonic(), 0.0)
            return [
                Ask(
                    *asked,
                    priority=0,
                    deadline_s=left,
                    request_id=f"{context.request_id}-{number}",
                    cache_salt="",
                )
            ]

        while True:
            try:
                handles = await self._served.submit(asks, begun=number > 0)
            except QueueFull as error:
                if not number:
                    raise
                await asyncio.sleep(error.retry_after_s)
                continue
            if not handles:
                return
            [result] = await results(handles)
            [sequence] = result.sequences
            if sequence.finish_reason is FinishReason.DEADLINE:
                raise unavailable(f"it took longer than {most:g} s (server.request_timeout_s)")
            finish_of(sequence.finish_reason, None)
            number += 1
            found = listening.tell(result)
            so_far = listening.transcript
            context.usage = usage_of(so_far.prompt_tokens, so_far.completion_tokens, 0)
            yield found

    async def _events(self, listening: Listening, context: RequestContext) -> AsyncIterator[bytes]:
        sent = 0
        try:
            async for _ in self._segments(listening, context):
                text = listening.transcript.text
                if len(text) > sent:
                    yield event(TextDelta(delta=text[sent:]).model_dump_json())
                    sent = len(text)
            found = listening.transcript
            usage = TokenUsage(
                input_tokens=found.prompt_tokens,
                output_tokens=found.completion_tokens,
                total_tokens=found.prompt_tokens + found.completion_tokens,
                input_token_details=InputTokenDetails(
                    audio_tokens=0, text_tokens=found.prompt_tokens
                ),
            )
            yield event(TextDone(text=found.text, usage=usage).model_dump_json())
        except Exception as error:
            yield context.failed_midway(as_api_error(error), error)


def _response(form: Format, found: Transcript) -> Response:
    match form:
        case "json":
            answer = Transcription(text=found.text, usage=Duration(seconds=found.duration))
            return JSONResponse(answer.model_dump())
        case "verbose_json":
            return JSONResponse(verbose(found).model_dump())
        case "text":
            return PlainTextResponse(found.text + "\n")
        case "srt":
            return PlainTextResponse(srt(found.segments))
        case "vtt":
            return PlainTextResponse(vtt(found.segments))


class _Held:
    """Seconds of the sounds that are being written down, which lie in memory, bounded together."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._seconds = 0.0
        self._lock = Lock()

    def take(self) -> _Sound:
        return _Sound(self)

    @contextmanager
    def sound(self) -> Iterator[_Sound]:
        taken = self.take()
        try:
            yield taken
        finally:
            taken.leave()

    def change(self, seconds: float) -> None:
        with self._lock:
            if seconds > 0 and self._seconds + seconds > self._most:
                raise QueueFull(
                    f"the sounds that are being written down last {self._seconds:.0f} seconds, and"
                    f" this server takes {self._most:g} at once (server.max_audios_s); try again"
                    " later",
                    retry_after_s=5.0,
                )
            self._seconds += seconds


class _Sound:
    """One sound's share of them."""

    def __init__(self, held: _Held) -> None:
        self._held = held
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Raises `QueueFull`."""
        self._held.change(seconds)
        self._seconds += seconds

    def leave(self) -> None:
        self._held.change(-self._seconds)
        self._seconds = 0.0
