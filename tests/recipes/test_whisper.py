"""A model that hears, from its folder to text."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock import LLM, SamplingParams
from paddock.recipes.derive import answer_begins
from paddock.runtime.audio.log_mel import SAMPLE_RATE, log_mel, windows
from paddock.runtime.errors import RequestError
from paddock.runtime.speech.sound_prompt import SoundPrompt
from tests.models.encoder_decoder_cases import EncoderDecoderCase

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
DEMO = Path(__file__).parents[2] / "paddock" / "demo"
BEGINS = [3, 11, 17]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A random Whisper of 0.6 seconds with the demo's tokenizer, and transformers' model of it."""
    from tests.models.transformers_encoder_decoder import reference, save

    folder = tmp_path_factory.mktemp("tiny-whisper")
    for file in DEMO.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    size = json.loads((DEMO / "config.json").read_text())["vocab_size"]

    class Sized(EncoderDecoderCase):
        @property
        def config(self) -> dict[str, Any]:
            return super().config | {"vocab_size": size, "max_source_positions": 30}

    case = Sized("whisper/1")
    model = reference(case)
    save(case, model, folder)
    (folder / "config.json").write_text(json.dumps(case.config))
    generation = {
        "decoder_start_token_id": BEGINS[0],
        "task_to_id": {"transcribe": BEGINS[1], "translate": 99},
        "no_timestamps_token_id": BEGINS[2],
        "suppress_tokens": [5, 6],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder, model


def test_what_is_heard_is_written_as_by_transformers(saved: tuple[Path, Any]) -> None:
    import torch

    folder, model = saved
    random = np.random.default_rng(3)
    sounds = [
        0.1 * random.standard_normal(int(seconds * SAMPLE_RATE)) for seconds in (0.6, 0.01, 0.3)
    ]
    with LLM(str(folder), "dtype=f32", "engine.cache_dtype=f32") as llm:
        completions = llm.generate(
            [
                SoundPrompt(windows(log_mel(sound, model.config.num_mel_bins, 0.6)))
                for sound in sounds
            ],
            SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, logprobs=1),
        )
        assert llm.running.built.manifest["check"]["share"] <= 1
    bands = model.config.num_mel_bins
    firsts: list[float] = []
    for sound, completion in zip(sounds, completions, strict=True):
        features = torch.tensor(log_mel(sound, bands, 0.6))[None]
        tokens = list(BEGINS)
        expected: list[float] = []
        for _ in range(9):
            with torch.no_grad():
                out = model(input_features=features, decoder_input_ids=torch.tensor([tokens]))
            logits = out.logits[0, -1]
            logits[[5, 6]] -= 100
            expected.append(float(torch.log_softmax(logits.double(), -1).max()))
            tokens.append(int(logits.argmax()))
        assert list(completion.token_ids) == tokens[3:]
        assert completion.logprobs is not None
        found = np.array([token.logprob for token in completion.logprobs], np.float64)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        firsts.append(float(found[0]))
    # The three are told apart, by more than that.
    assert min(np.diff(sorted(firsts))) > 5e-3


def test_a_model_that_reads_does_not_hear() -> None:
    with LLM("demo") as llm, pytest.raises(RequestError, match="demo hears nothing"):
        llm.transcribe([np.zeros(10)])


def test_answers_begin_with_language_and_task(tmp_path: Path) -> None:
    generation = {
        "decoder_start_token_id": 50258,
        "lang_to_id": {"<|en|>": 50259, "<|fr|>": 50265},
        "task_to_id": {"transcribe": 50359},
        "no_timestamps_token_id": 50363,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text("{}")
    assert answer_begins(tmp_path) == [50258, 50259, 50359, 50363]
    assert answer_begins(tmp_path, 50265) == [50258, 50265, 50359, 50363]
