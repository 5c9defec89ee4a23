"""Sounds as files: the formats that are read, and what is refused before it is decoded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paddock.graph.dtype import Array
from paddock.runtime.audio.log_mel import SAMPLE_RATE
from paddock.runtime.audio.sound_file import SoundLimits, decode, read_sound
from paddock.runtime.errors import QueueFull, RequestError

KINDS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def written(samples: Array, rate: int, form: str = "WAV", kind: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=kind)
    return file.getvalue()


def tone(seconds: float, rate: int, hertz: float = 440.0) -> Array:
    found: Array = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return found


@pytest.mark.parametrize(("form", "kind"), KINDS)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2), (8_000, 1)])
def test_a_tone_is_heard(form: str, kind: str, rate: int, channels: int) -> None:
    samples = np.repeat(tone(12.3, rate)[:, None], channels, axis=1)
    samples[:, 1:] = 0  # the mean of both is half of one
    found = decode(written(samples, rate, form, kind), SoundLimits())
    assert found.dtype == np.float32
    assert len(found) == pytest.approx(12.3 * SAMPLE_RATE, abs=0.15 * SAMPLE_RATE)
    middle = found[3 * SAMPLE_RATE : 11 * SAMPLE_RATE].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) / 8 == pytest.approx(440, abs=1)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2) / channels, rel=0.05)


def test_pieces_join_without_a_seam() -> None:
    """Resampled in pieces of ten seconds as in one."""
    import soxr

    samples = tone(25.0, 44_100, 1000).astype(np.float32)
    found = decode(written(samples, 44_100, "WAV", "FLOAT"), SoundLimits())
    np.testing.assert_allclose(found, soxr.resample(samples, 44_100, SAMPLE_RATE), atol=1e-4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the sound cannot be read: .*expected one of WAV, FLAC, OGG, MP3"),
        (b"RIFF", "the sound cannot be read"),
        (b"\x1aE\xdf\xa3webm" + bytes(100), "the sound cannot be read"),
        (b"<html>no sound</html>", "the sound cannot be read"),
        (written(tone(1, 16_000), 16_000, "AIFF"), "the sound is AIFF .*expected one of WAV"),
        (written(np.zeros(0), 16_000), "the sound is empty"),
        (written(np.zeros(9), 1_000), "the sound has 1000 samples a second in 1 channels; 4000 to"),
        (written(np.zeros((9, 20)), 16_000), "in 20 channels"),
        (written(np.array([0.0, np.nan]), 16_000, "WAV", "FLOAT"), "samples that are no numbers"),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode(data, SoundLimits())


@pytest.mark.parametrize(("form", "kind"), KINDS)
def test_damage_is_refused_or_read_around(form: str, kind: str) -> None:
    """Never anything but samples or a `RequestError`."""
    whole = written(tone(2.0, 16_000), 16_000, form, kind)
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for at in random.integers(0, min(len(data), 400), 6):
            data[at] = random.integers(0, 256)
        for cut in (len(data), int(random.integers(0, len(data)))):
            try:
                found = decode(bytes(data[:cut]), SoundLimits(max_seconds=5))
            except RequestError:
                refused += 1
            else:
                assert 0 < len(found) <= 5 * SAMPLE_RATE + 100
                assert np.isfinite(found).all()
    assert refused


def test_hours_in_few_bytes_are_not_decoded() -> None:
    data = written(np.zeros(3600 * 8_000, np.int16), 8_000, "FLAC")
    assert len(data) < 300_000
    with pytest.raises(RequestError, match=r"lasts 3600\.0 seconds, 1800 at most are heard"):
        decode(data, SoundLimits(max_seconds=1800))
    with pytest.raises(RequestError, match=f"has {len(data)} bytes, 1000 at most are read"):
        decode(data, SoundLimits(max_bytes=1000))


def test_each_piece_is_told_before_it_is_kept() -> None:
    told: list[float] = []

    def tell(seconds: float) -> None:
        told.append(seconds)
        if sum(told) > 15:
            raise QueueFull("full", retry_after_s=1.0)

    with pytest.raises(QueueFull):
        decode(written(tone(40, 8_000), 8_000), SoundLimits(), told=tell)
    assert told == [10, 10]


def test_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(written(tone(0.5, 16_000), 16_000))
    assert len(read_sound(tmp_path / "a.wav")) == 8000
    (tmp_path / "b.wav").write_bytes(b"no")
    with pytest.raises(RequestError, match=r"b\.wav: the sound cannot be read"):
        read_sound(tmp_path / "b.wav")
    with pytest.raises(RequestError, match=r"c\.wav: cannot be read: No such file"):
        read_sound(tmp_path / "c.wav")
    with pytest.raises(RequestError, match=r"a\.wav: .*bytes, 9 at most"):
        read_sound(tmp_path / "a.wav", SoundLimits(max_bytes=9))
