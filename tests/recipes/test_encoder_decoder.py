"""An encoder-decoder from its folder to text: built, checked, served, as transformers writes it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paddock import LLM, SamplingParams
from paddock.models.config import ConfigError
from paddock.recipes.compose import compose
from paddock.recipes.derive import answer_begins, sampling_defaults
from paddock.recipes.errors import RecipeError
from tests.models.encoder_decoder_cases import EncoderDecoderCase

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
DEMO = Path(__file__).parents[2] / "paddock" / "demo"
PROMPTS = ["The ls command lists files.", "A package", "To copy a file, use the command cp. " * 3]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A random T5 with the demo's tokenizer, and transformers' model of it."""
    from tests.models.transformers_encoder_decoder import reference, save

    folder = tmp_path_factory.mktemp("tiny-t5")
    for file in DEMO.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    size = json.loads((DEMO / "config.json").read_text())["vocab_size"]

    class Sized(EncoderDecoderCase):
        @property
        def config(self) -> dict[str, Any]:
            return super().config | {"vocab_size": size, "eos_token_id": size - 1}

    case = Sized("t5/2")
    model = reference(case)
    save(case, model, folder)
    (folder / "config.json").write_text(json.dumps(case.config))
    begins = {"decoder_start_token_id": 0, "eos_token_id": size - 1, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(begins))
    return folder, model


def test_text_is_that_of_transformers(saved: tuple[Path, Any]) -> None:
    import torch

    folder, model = saved
    with LLM(str(folder), "dtype=f32", "engine.cache_dtype=f32") as llm:
        completions = llm.generate(PROMPTS, SamplingParams(max_tokens=12, temperature=0.0))
        check = llm.running.built.manifest["check"]
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            ids = llm.tokenizer.encode(prompt)
            made = model.generate(
                torch.tensor([ids]),
                max_new_tokens=12,
                do_sample=False,
                decoder_start_token_id=0,
                eos_token_id=len(model.shared.weight) - 1,
                use_cache=False,  # transformers' is for as many decoder layers as encoder layers
            )
            assert completion.token_ids == tuple(made[0, 1:].tolist())
            assert completion.prompt_token_ids == tuple(ids)
            assert completion.usage.prompt_tokens == len(ids)
            assert completion.text == llm.tokenizer.decode(list(completion.token_ids))
    assert check["error"] < 1e-4
    assert check["share"] <= 1


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"decoder_start_token_id": 2}, {}, [2]),
        ({"decoder_start_token_id": 2, "forced_bos_token_id": 250004}, {}, [2, 250004]),
        ({}, {"decoder_start_token_id": 0, "forced_bos_token_id": None}, [0]),
        ({"decoder_start_token_id": 2}, {"decoder_start_token_id": 5}, [2]),
        ({"bos_token_id": 7}, {}, [7]),
    ],
)
def test_what_answers_begin_with(
    tmp_path: Path, generation: Any, config: Any, expected: list[int]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert answer_begins(tmp_path) == expected


def test_the_recipe_forces_a_language(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(
        '{"decoder_start_token_id": 2, "forced_bos_token_id": 7}'
    )
    (tmp_path / "config.json").write_text("{}")
    assert answer_begins(tmp_path, 250008) == [2, 250008]


def test_a_language_that_there_is_not(saved: tuple[Path, Any]) -> None:
    with pytest.raises(RecipeError, match=r"answer_language: 'fra_Latn' is no special token"):
        LLM(str(saved[0]), "dtype=f32", "engine.cache_dtype=f32", "answer_language=fra_Latn")
    with pytest.raises(RecipeError, match=r"LlamaForCausalLM is no encoder-decoder; leave it out"):
        LLM("demo", "answer_language=fra_Latn")


def test_tokens_that_are_never_written(tmp_path: Path) -> None:
    """As Marian's files forbid its padding, and Whisper's what is no speech."""
    (tmp_path / "generation_config.json").write_text(
        '{"bad_words_ids": [[58100], [3, 4]], "suppress_tokens": [1, 2, -1]}'
    )
    recipe = compose("auto", ("checkpoint=demo",)).recipe
    found = sampling_defaults(recipe, tmp_path)
    assert found["logit_bias"] == {58100: -100.0, 1: -100.0, 2: -100.0}


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({}, "says no decoder_start_token_id, with which every answer begins"),
        ({"decoder_start_token_id": "two"}, "decoder_start_token_id is 'two', expected a token"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id is '-1', expected a token"),
        ({"decoder_start_token_id": True}, "decoder_start_token_id is 'True', expected a token"),
    ],
)
def test_what_answers_cannot_begin_with(tmp_path: Path, generation: Any, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=message):
        answer_begins(tmp_path)
