"""A random model that hears 0.6 seconds at a time, as a whole checkpoint with Whisper's tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.encoder_decoder_cases import EncoderDecoderCase

DEMO = Path(__file__).parents[2] / "paddock" / "demo"
PLACES = 30
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|fr|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
SECONDS = 0.6
TIMES = tuple(f"<|{0.02 * i:.2f}|>" for i in range(PLACES + 1))
LANGUAGES = ("<|en|>", "<|de|>", "<|fr|>")


@dataclass(frozen=True)
class Drawn:
    """A drawn model, and what its embeddings are scaled by, so that it writes all sorts of tokens
    and times."""

    name: str
    text: float
    end: float
    times: float


WORDS = Drawn("whisper/3", text=0.55, end=1.2, times=0.75)
"""Long segments of several words."""
TIMES_TOO = Drawn("whisper/1", text=0.35, end=1.3, times=0.8)
"""Several segments in a window, some of which its end cuts."""


def save(folder: Path, drawn: Drawn = WORDS) -> tuple[dict[str, int], Any]:
    """The ids of its special tokens and times, and transformers' model of it."""
    from tests.models.transformers_encoder_decoder import reference, save

    text = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    ids = {name: text + i for i, name in enumerate((*SPECIAL, *TIMES))}
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    like = tokenizer["added_tokens"][-1]
    tokenizer["added_tokens"] += [
        {**like, "id": i, "content": name, "special": name in SPECIAL} for name, i in ids.items()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((DEMO / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    settings["eos_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    class Sized(EncoderDecoderCase):
        @property
        def config(self) -> dict[str, Any]:
            return super().config | {
                "vocab_size": text + len(ids),
                "max_source_positions": PLACES,
                "decoder_start_token_id": ids["<|startoftranscript|>"],
                "eos_token_id": ids["<|endoftext|>"],
                "pad_token_id": ids["<|endoftext|>"],
            }

        def value(self, name: str, shape: tuple[int, ...]) -> Any:
            found = super().value(name, shape)
            if "embed_tokens" in name:
                found[:text] *= drawn.text
                found[ids["<|endoftext|>"]] *= drawn.end
                found[ids["<|0.00|>"] :] *= drawn.times
            return found

    case = Sized(drawn.name)
    model = reference(case)
    save(case, model, folder)
    (folder / "config.json").write_text(json.dumps(case.config))
    generation = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "is_multilingual": True,
        "lang_to_id": {name: ids[name] for name in LANGUAGES},
        "task_to_id": {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "max_initial_timestamp_index": 10,
        "max_length": case.config["max_target_positions"],
        "suppress_tokens": [5, 6, *(ids[name] for name in SPECIAL[1:-1])],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    model.generation_config = type(model.generation_config)(**generation)
    return ids, model


def sound(seconds: float, seed: int = 1) -> np.ndarray:
    """Noise whose loudness changes, f32, 16000 samples a second."""
    random = np.random.default_rng(seed)
    count = int(seconds * 16_000)
    loud = np.repeat(random.random(count // 1600 + 1), 1600)[:count]
    tone = np.repeat(random.random(count // 1600 + 1), 1600)[:count] ** 3
    found = 0.2 * random.standard_normal(count) + np.sin(tone * np.arange(count))
    return np.asarray(0.3 * loud * found, np.float32)
