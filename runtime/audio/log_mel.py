"""What Whisper hears: the logarithm of a sound's energy in bands of the mel scale, in time.

Section 2.2 of Radford et al. 2022, arxiv.org/abs/2212.04356, and the code published with it.
"""

from __future__ import annotations

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.errors import RequestError

SAMPLE_RATE = 16_000
FRAMES_PER_SECOND = 100
SECONDS = 30
_FRAME, _HOP = 400, 160  # samples: 25 ms, every 10 ms
_AT_ONCE = 3000  # frames whose spectra are in memory together


def checked_sound(samples: Array) -> Array:
    """The samples, where they are a sound. Raises `RequestError`."""
    found = np.asarray(samples)
    if found.ndim != 1 or found.dtype.kind != "f" or not len(found) or not np.isfinite(found).all():
        raise RequestError(
            f"a sound is one row of finite floats, {SAMPLE_RATE} a second, not {found.dtype}"
            f"{list(found.shape)}"
        )
    return found


def log_mel(samples: Array, bands: int = 80, seconds: float | None = SECONDS) -> Array:
    """f32 [bands, frames] of samples in [-1, 1], 16000 a second; a frame is 0.01 s.

    Of so many `seconds`: what is longer is cut, what is shorter followed by silence; None: of all,
    which must be 0.02 s at least. Values span 8 powers of ten below the loudest, moved to about
    [-1, 1].
    """
    if seconds is not None:
        length = int(seconds * SAMPLE_RATE)
        padded = np.zeros(length)
        padded[: len(samples)] = samples[:length]
        samples = padded
    framed = np.pad(samples, _FRAME // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(framed, _FRAME)[::_HOP][:-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)
    filters = mel_filters(bands)
    logs = np.empty((bands, len(frames)), np.float32)
    for begin in range(0, len(frames), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        power = np.abs(np.fft.rfft(frames[some] * window)) ** 2
        logs[:, some] = np.log10(np.maximum(power @ filters, 1e-10)).T
    found: Array = (np.maximum(logs, logs.max() - np.float32(8)) + np.float32(4)) / np.float32(4)
    return found


def mel_filters(bands: int) -> Array:
    """[frequencies, bands]: triangles of equal area, between neighbours on Slaney's mel scale.

    Linear below 1000 Hz, where 200/3 Hz are a mel; logarithmic above, 27 mels for a factor 6.4.
    Malcolm Slaney, Auditory Toolbox, 1998.
    """

    def hertz(mels: Array) -> Array:
        return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))

    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = hertz(np.linspace(0, top, bands + 2))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, _FRAME // 2 + 1)
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    found: Array = triangles * 2 / (edges[2:] - edges[:-2])
    return found


def windows(mel: Array) -> Array:
    """What the graph is fed for a log-mel [bands, frames]: f32 [frames / 2, 3 (3 bands + 1)].

    The second convolution takes every second frame with its neighbours, the first each of these
    with theirs: so for each of three frames, its own three (band by band), and 1. Where the second
    would read what lies before the sound, all are 0, and so is what the first makes of them.
    """
    bands, count = mel.shape
    padded = np.pad(mel, ((0, 0), (2, 2)))
    at = np.arange(0, count, 2)
    parts = []
    for shift in (-1, 0, 1):
        frames = at + shift
        near = np.stack([padded[:, frames + 1 + k] for k in range(3)], axis=-1)
        there = (frames >= 0).astype(np.float32)[:, None]
        parts += [near.transpose(1, 0, 2).reshape(len(at), 3 * bands) * there, there]
    return np.concatenate(parts, axis=1).astype(np.float32)
