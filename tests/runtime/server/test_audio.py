"""Sounds over HTTP, with the official client, against the model offline."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile

from paddock import LLM
from paddock.__main__ import main
from paddock.runtime.audio.sound_file import SoundLimits, decode
from tests.models.saved_whisper import save, sound
from tests.runtime.server.serving import Serving
from tests.runtime.server.true_document import check_document

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
SETTINGS = ("dtype=f32", "engine.cache_dtype=f32", "sampling.max_tokens=12", "sampling.seed=7")
BOUNDS = (
    "server.model_names=[tiny,whisper-1]",
    "server.max_audio_mib=0.5",
    "server.max_audio_s=60",
    "server.max_audios_s=90",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("served-whisper")
    save(found)
    return found


@pytest.fixture(scope="module")
def offline(folder: Path, server_home: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDOCK_HOME", str(server_home))
        with LLM(str(folder), *SETTINGS) as started:
            yield started


@pytest.fixture(scope="module")
def served(
    folder: Path, environment: dict[str, str], server_home: Path, offline: LLM
) -> Iterator[Serving]:
    with Serving(environment, server_home, str(folder), *SETTINGS, *BOUNDS) as started:
        yield started


@pytest.fixture
def client(served: Serving) -> Iterator[openai.OpenAI]:
    with served.client() as made:
        yield made


def wav(seconds: float, seed: int = 1, rate: int = 16_000, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seconds, seed), rate, format=form)
    return file.getvalue()


def asked(data: bytes, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "file": ("talk.wav", data), **fields}


def test_answers_are_those_of_the_model_offline(client: openai.OpenAI, offline: LLM) -> None:
    data = wav(2.2)
    [expected] = offline.transcribe([data], language="fr", prompt="The file", temperature=0.3)
    assert expected.text
    create = client.audio.transcriptions.create
    fields = asked(data, language="fr", prompt="The file", temperature=0.3)
    assert create(**fields).text == expected.text
    found = create(**fields, response_format="json")
    assert found.usage is not None
    assert found.usage.model_dump() == {"type": "duration", "seconds": pytest.approx(2.2)}
    assert create(**fields, response_format="text") == expected.text + "\n"
    detailed = create(**fields, response_format="verbose_json", timestamp_granularities=["segment"])
    assert (detailed.language, detailed.duration) == ("french", pytest.approx(2.2))
    assert detailed.segments is not None
    assert len(detailed.segments) == len(expected.segments) > 2
    for one, other in zip(detailed.segments, expected.segments, strict=True):
        assert one.text == other.text
        assert (one.start, one.end, one.seek, one.id) == (
            other.start,
            other.end,
            other.seek,
            other.id,
        )
        assert tuple(one.tokens) == other.tokens
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-3)
        assert one.compression_ratio == pytest.approx(other.compression_ratio)
        assert one.temperature == 0.3
        assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-4)
    srt = str(create(**fields, response_format="srt"))
    assert srt.startswith("1\n00:00:00,000 --> 00:00:0")
    assert srt.count(" --> ") == len(expected.segments)
    assert str(create(**fields, response_format="vtt")).startswith("WEBVTT\n\n00:00.000 --> ")


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by the client
def test_translations_and_languages(client: openai.OpenAI, offline: LLM) -> None:
    data = wav(1.0, seed=4, form="FLAC")
    [expected] = offline.transcribe([data], task="translate")
    found: Any = client.audio.translations.create(**asked(data), response_format="verbose_json")
    assert (found.text, found.task, found.language) == (expected.text, "translate", "english")
    heard: Any = client.audio.transcriptions.create(**asked(data), response_format="verbose_json")
    names = {"en": "english", "de": "german", "fr": "french"}
    assert heard.language == names[offline.transcribe([data])[0].language]


@pytest.mark.parametrize("form", ["MP3", "OGG"])
def test_what_is_compressed_is_read(client: openai.OpenAI, offline: LLM, form: str) -> None:
    data = wav(1.0, rate=48_000, form=form)
    [expected] = offline.transcribe([decode(data, SoundLimits())], language="en")
    found = client.audio.transcriptions.create(**asked(data, language="en"))
    assert found.text == expected.text


def test_segments_come_as_events(served: Serving, client: openai.OpenAI, offline: LLM) -> None:
    data = wav(2.2)
    [expected] = offline.transcribe([data], language="fr")
    events = list(client.audio.transcriptions.create(**asked(data, language="fr"), stream=True))
    *deltas, done = events
    assert len(deltas) > 1
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert "".join(getattr(event, "delta", "") for event in deltas) == expected.text
    assert done.type == "transcript.text.done"
    assert done.text == expected.text
    assert done.usage is not None
    assert done.usage.output_tokens == expected.completion_tokens
    assert done.usage.input_tokens == expected.prompt_tokens
    served.wait_until(running=0)


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"file": ("a.wav", b"RIFF no sound")}, 400, "file: the sound cannot be read"),
        ({"file": ("a.wav", b"")}, 400, "file: the sound cannot be read"),
        ({"file": ("a.flac", wav(61, form="FLAC")[:400_000])}, 400, "61.0 seconds, 60 at most"),
        ({"file": ("a.wav", wav(50.0))}, 413, "server.max_audio_mib"),
        ({"model": "other"}, 404, "no model is called 'other'"),
        ({"language": "klingon"}, 400, "language: 'klingon' is none that this model"),
        ({"temperature": 1.5}, 400, "temperature: Input should be less than or equal to 1"),
        ({"response_format": "diarized_json"}, 400, "response_format: Input should be"),
        (
            {"timestamp_granularities": ["word"], "response_format": "verbose_json"},
            400,
            "gives the times of segments, not of words",
        ),
        ({"timestamp_granularities": ["segment"]}, 400, "set response_format to verbose_json"),
        ({"stream": True, "response_format": "srt"}, 400, "stream: is of response_format json"),
        ({"chunking_strategy": "auto"}, 400, "chunking_strategy: there is no such field"),
        ({"include": ["logprobs"]}, 400, "include.*: there is no such field"),
        ({"known_speaker_names": ["a"]}, 400, "known_speaker_names.*: there is no such field"),
        ({"keywords": ["a"]}, 400, "keywords.*: there is no such field"),
        ({"languages": ["de"]}, 400, "languages.*: there is no such field"),
    ],
)
def test_what_cannot_be_heard_is_refused(
    client: openai.OpenAI, fields: dict[str, Any], status: int, message: str
) -> None:
    given = asked(wav(0.3)) | fields
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.audio.transcriptions.create(**given)
    assert caught.value.status_code == status


def test_forms_that_are_none(served: Serving) -> None:
    path = "/v1/audio/transcriptions"
    status, _, body = served.ask(path, {"model": "tiny"})
    assert (status, body["error"]["param"]) == (400, "file")
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for broken in (b"", b"--x\r\nContent-Disposition: form-data", b"nothing", b"--x--\r\n"):
        assert served.ask(path, broken, form)[0] == 400
    status, _, body = served.ask("/v1/chat/completions", {"model": "tiny", "messages": []})
    assert status == 404


def test_a_model_that_reads_has_no_ears(server: Serving) -> None:
    with server.client() as client, pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(model="demo", file=("a.wav", wav(0.3)), language="en")


def test_seconds_are_bounded_together_and_given_back(
    served: Serving, client: openai.OpenAI
) -> None:
    """Of two sounds of fifty seconds one is told to come again; a client that leaves frees them."""
    data = wav(50.0, form="OGG")
    assert len(data) < 500_000
    answers: list[Any] = []

    def ask() -> None:
        try:
            with (
                served.client(timeout=20) as own,
                own.audio.transcriptions.create(
                    **asked(data, language="en"), stream=True
                ) as stream,
            ):
                answers.append(next(iter(stream)).type)
                time.sleep(0.5)  # and it leaves
        except openai.APIStatusError as error:
            answers.append((error.status_code, error.response.headers["retry-after"]))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers, key=str) == [(429, "5"), "transcript.text.delta"]
    served.wait_until(running=0)
    found = client.audio.transcriptions.create(
        model="whisper-1", file=("a.ogg", wav(0.5, form="OGG"))
    )
    assert found.text is not None
    assert served.ask("/health")[0] == 200
    assert "Traceback" not in served.log


def test_the_document_says_what_is_taken(
    served: Serving, environment: dict[str, str], tmp_path: Path
) -> None:
    """As tests/runtime/server/test_openapi.py, of what models that hear are asked."""
    _, _, document = served.ask("/openapi.json")
    assert {"/v1/audio/transcriptions", "/v1/audio/translations"} <= set(document["paths"])
    assert "/v1/chat/completions" not in document["paths"]
    operation = document["paths"]["/v1/audio/transcriptions"]["post"]
    [(kind, described)] = operation["requestBody"]["content"].items()
    assert kind == "multipart/form-data"
    form = document["components"]["schemas"][described["schema"]["$ref"].rpartition("/")[2]]
    assert form["properties"]["model"]["enum"] == ["tiny", "whisper-1"]
    assert sorted(form["required"]) == ["file", "model"]
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json",
        "text/plain",
        "text/event-stream",
    }
    check_document(
        served,
        environment,
        tmp_path,
        *("--include-path-regex", "^/v1/audio/"),
        more_than=50,
        timeout_s=120,
    )


def test_files_are_written_down_on_the_command_line(
    folder: Path,
    offline: LLM,
    server_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(server_home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    (tmp_path / "b.flac").write_bytes(wav(0.7, seed=2, form="FLAC"))
    files = ("--file", "a.wav", "--file", "b.flac", "--language", "de")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["transcribe", *arguments, "--quiet"])
        return status, *capsys.readouterr()

    status, out, _ = run(str(folder), *SETTINGS, *files, "--format", "json")
    assert status == 0
    found = [json.loads(line) for line in out.splitlines()]
    expected = offline.transcribe([tmp_path / "a.wav", tmp_path / "b.flac"], language="de")
    assert [one["file"] for one in found] == ["a.wav", "b.flac"]
    assert [one["text"] for one in found] == [one.text for one in expected]
    assert found[0]["segments"][0]["end"] == expected[0].segments[0].end
    _, out, _ = run(str(folder), *SETTINGS, *files)
    first, second = (one.text for one in expected)
    assert out == f"==> 1/2 a.wav <==\n{first}\n==> 2/2 b.flac <==\n{second}\n"
    (tmp_path / "c.wav").write_bytes(b"none")
    status, _, error = run(str(folder), "--file", "c.wav")
    assert status == 1
    assert "c.wav: the sound cannot be read" in error
    status, _, error = run("demo", "--file", "a.wav")
    assert status == 1
    assert "demo hears nothing" in error


def test_recipes_say_the_language(folder: Path, server_home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDOCK_HOME", str(server_home))
        with LLM(str(folder), *SETTINGS, "answer_language='<|de|>'") as llm:
            assert llm.transcribe([sound(0.5, seed) for seed in range(3)])[2].language == "de"
