"""A drawn model saved by transformers as a checkpoint, and what transformers makes of two prompts.

Importing it needs torch and transformers.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from paddock.graph import Array
from tests.models.decoder_draws import LENGTHS, Config, Draw
from tests.models.drawn_families import FAMILIES
from tests.models.remote_code_draws import REMOTE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers
    from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


@dataclass(frozen=True)
class Published:
    """A checkpoint's folder, and logits [tokens, vocab] of its sequences."""

    folder: Path
    sequences: list[Array]
    logits: list[Array]

    @property
    def config(self) -> Config:
        config: Config = json.loads((self.folder / "config.json").read_text("utf-8"))
        return config


def publish(
    family: str, number: int, folder: Path, *, divisible: bool = False, layers: int = 2
) -> Published:
    """The `number`th draw of a family, with random weights that show every mistake."""
    draw = Draw(family, number, divisible=divisible, layers=layers)
    return publish_config(FAMILIES[family](draw), folder, seed=number)


def publish_remote(
    family: str, number: int, folder: Path, *, divisible: bool = False, layers: int = 2
) -> Published:
    """The same of a family with code of its own: its twin's logits, its own names and layout."""
    remote = REMOTE[family]
    draw = Draw(family, number, divisible=divisible, layers=layers)
    fields = remote.draw(draw) | {
        "architectures": [remote.twin[0]],
        "model_type": remote.twin[1],
    }
    made_by_twin = publish_config(fields, folder, seed=number)
    tensors = remote.tensors(load_file(folder / "model.safetensors"), fields)
    save_file(
        {n: np.ascontiguousarray(a) for n, a in tensors.items()}, folder / "model.safetensors"
    )
    published = remote.config(fields) | {"architectures": [family]}
    (folder / "config.json").write_text(json.dumps(published), "utf-8")
    return made_by_twin


def publish_config(fields: Config, folder: Path, *, seed: int) -> Published:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made(fields, seed)
        model.save_pretrained(folder)
        random = np.random.default_rng(seed)
        sequences = [random.integers(0, fields["vocab_size"], n) for n in LENGTHS]
        if fields["model_type"] in IN_F64:
            model = model.double()
        return Published(folder, sequences, logits(model, sequences))


# RecurrentGemma's 1 - a^2 has lost its digits in f32 where a is nearly 1; transformers' own logits
# are then off by up to 7e-4.
IN_F64 = ("recurrent_gemma",)


def made(fields: Config, seed: int) -> Any:
    """transformers' model of a config, with weights large enough for attention to be sharp."""
    config = transformers.CONFIG_MAPPING[fields["model_type"]].from_dict(_copy(fields))
    config._experts_implementation = "eager"  # the others take rows of whole 16 bytes
    model_class = getattr(transformers, fields["architectures"][0])
    # Falcon's eager attention adds ALiBi twice, to its scores and in its mask.
    attention = "sdpa" if fields.get("alibi") else "eager"
    model = model_class._from_config(config, attn_implementation=attention, dtype=torch.float32)
    random = np.random.default_rng([seed, 1])
    with torch.no_grad():
        for name, slot in model.named_parameters():
            values = random.standard_normal(slot.shape)
            if slot.dim() == 1 and not name.endswith("bias"):
                values = 1 + 0.3 * values
            elif slot.dim() == 1:
                values = 0.5 * values
            elif "norm" in name.split(".")[-2]:
                values = 1 + 0.3 * values
            elif slot is not model.get_input_embeddings().weight:
                values = 1.2 * values / np.sqrt(min(slot.shape))
            slot.copy_(torch.tensor(values, dtype=torch.float32))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.tensor(0.3 * random.standard_normal(buffer.shape)))
    return model.eval()


def logits(model: Any, sequences: list[Array]) -> list[Array]:
    """Of each sequence, run whole and without a cache."""
    with torch.no_grad():
        return [
            model(torch.tensor(ids)[None], use_cache=False).logits[0].numpy() for ids in sequences
        ]


def _copy(config: Config) -> Config:
    """transformers writes into nested dictionaries."""
    copied: Config = json.loads(json.dumps(config))
    return copied
