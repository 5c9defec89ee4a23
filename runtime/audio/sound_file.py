"""Decoding sounds that anybody may have sent: a few formats, within bounds that come first.

libsndfile (through soundfile) reads them, libsoxr (through soxr) makes 16000 samples a second.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.audio.log_mel import SAMPLE_RATE
from paddock.runtime.errors import RequestError

FORMATS = {"WAV": "WAV", "WAVEX": "WAV", "RF64": "WAV", "FLAC": "FLAC", "OGG": "OGG", "MP3": "MP3"}
"""libsndfile's names of what is read, and everybody's."""
RATES = range(4_000, 384_001)
MAX_CHANNELS = 16
_BLOCK_SECONDS = 10


@dataclass(frozen=True)
class SoundLimits:
    """What one sound may take."""

    max_bytes: int = 1 << 30
    """As sent."""
    max_seconds: float = 4 * 3600
    """As decoded: a file of some kilobytes can hold hours of silence."""


def read_sound(path: str | Path, limits: SoundLimits | None = None) -> Array:
    """`decode` of a file. Raises `RequestError`, which names it."""
    limits = limits or SoundLimits()
    try:
        size = Path(path).stat().st_size
        if size > limits.max_bytes:
            raise _too_large(size, limits)
        return decode(Path(path).read_bytes(), limits)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from None
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None


def decode(
    data: bytes, limits: SoundLimits, *, told: Callable[[float], None] = lambda seconds: None
) -> Array:
    """Samples f32 in [-1, 1], 16000 a second; of several channels the mean.

    Nothing is decoded that says to be too long, and no more than `limits` of what lies about it;
    `told` hears of each piece's seconds before it is kept, and may raise. Raises `RequestError`.
    """
    try:
        import soundfile
        import soxr
    except ImportError:
        raise RequestError(
            "sounds need soundfile and soxr, which are not installed: pip install 'paddock[audio]'"
        ) from None
    if len(data) > limits.max_bytes:
        raise _too_large(len(data), limits)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            rate, channels = sound.samplerate, sound.channels
            if sound.format not in FORMATS:
                raise RequestError(f"the sound is {sound.format_info}, {_EXPECTED}")
            if rate not in RATES or channels > MAX_CHANNELS:
                raise RequestError(
                    f"the sound has {rate} samples a second in {channels} channels; {RATES[0]} to"
                    f" {RATES[-1]} in {MAX_CHANNELS} at most are read"
                )
            if sound.frames / rate > limits.max_seconds:
                raise _too_long(sound.frames / rate, limits)
            stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
            pieces: list[Array] = []
            read = 0
            while True:
                block = sound.read(_BLOCK_SECONDS * rate, dtype="float32", always_2d=True)
                last = len(block) < _BLOCK_SECONDS * rate
                read += len(block)
                if read / rate > limits.max_seconds:
                    raise _too_long(read / rate, limits)
                told(len(block) / rate)
                mono = block.mean(axis=1) if channels > 1 else block[:, 0]
                pieces.append(mono if rate == SAMPLE_RATE else stream.resample_chunk(mono, last))
                if last:
                    break
    except RequestError:
        raise
    except Exception as error:  # whatever a decoder raises of what somebody made up
        raise RequestError(f"the sound cannot be read: {_one_line(error)}; {_EXPECTED}") from None
    samples = np.concatenate(pieces)
    if not len(samples):
        raise RequestError("the sound is empty")
    if not np.isfinite(samples).all():
        raise RequestError("the sound has samples that are no numbers; write it again")
    return samples


_EXPECTED = f"expected one of {', '.join(dict.fromkeys(FORMATS.values()))}; ffmpeg converts others"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].removesuffix(".")


def _too_large(size: int, limits: SoundLimits) -> RequestError:
    return RequestError(
        f"the sound has {size} bytes, {limits.max_bytes} at most are read; make it smaller"
    )


def _too_long(seconds: float, limits: SoundLimits) -> RequestError:
    return RequestError(
        f"the sound lasts {seconds:.1f} seconds, {limits.max_seconds:g} at most are heard; cut it"
        " where nobody speaks"
    )
