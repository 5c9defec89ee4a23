"""Log-mel features equal those of transformers' WhisperFeatureExtractor."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from paddock.runtime.audio.log_mel import SAMPLE_RATE, log_mel, mel_filters, windows


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("seconds", [0.013, 3.0, 30.0, 31.0])
def test_features_are_those_of_transformers(bands: int, seconds: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        extractor = transformers.WhisperFeatureExtractor(feature_size=bands)
    random = np.random.default_rng(7)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    samples = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    samples += 0.05 * random.standard_normal(len(time))
    theirs = extractor(samples.astype(np.float32), sampling_rate=SAMPLE_RATE)["input_features"][0]
    ours = log_mel(samples, bands)
    assert ours.shape == (bands, 3000)
    assert np.abs(ours - theirs).max() < 2e-4
    np.testing.assert_allclose(mel_filters(bands), extractor.mel_filters, atol=1e-9)


def test_windows_are_what_two_convolutions_read() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    mel = random.standard_normal((4, 12)).astype(np.float32)
    first, second = random.standard_normal((5, 4, 3)), random.standard_normal((6, 5, 3))
    bias = random.standard_normal(5)
    conv = torch.nn.functional.conv1d
    x = torch.tanh(
        conv(torch.tensor(mel)[None].double(), torch.tensor(first), torch.tensor(bias), padding=1)
    )
    expected = conv(x, torch.tensor(second), stride=2, padding=1)[0].numpy().T
    found = np.zeros((6, 6))
    for k, part in enumerate(np.split(windows(mel), 3, axis=1)):
        hidden = np.tanh(part[:, :12] @ first.reshape(5, 12).T + part[:, 12:] * bias)
        found += hidden @ second[:, :, k].T
    np.testing.assert_allclose(found, expected, atol=1e-6)
