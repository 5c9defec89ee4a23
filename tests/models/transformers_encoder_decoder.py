"""What transformers makes of an encoder-decoder. Importing it needs torch and transformers."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from paddock.graph import Array
from tests.models.encoder_decoder_cases import EncoderDecoderCase

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers


COMPUTED_POSITIONS = ("marian", "pegasus", "m2m_100")


def reference(case: EncoderDecoderCase) -> Any:
    """The model of this architecture in transformers, with the case's weights.

    Its head is apart from its embedding where the config says so, whatever transformers ties.
    """
    given = copy.deepcopy(case.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.CONFIG_MAPPING[given["model_type"]].from_dict(given)
        config._attn_implementation = "eager"
        model = getattr(transformers, given["architectures"][0])(config).eval()
    if not given["tie_word_embeddings"]:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            computed = "embed_positions" in name and given["model_type"] in COMPUTED_POSITIONS
            if tensor.dtype.is_floating_point and not computed:
                tensor.copy_(torch.tensor(case.value(name, tuple(tensor.shape))))
    return model


def save(case: EncoderDecoderCase, model: Any, folder: Path) -> None:
    """As a checkpoint of Hugging Face: each tensor once, under the first of its names."""
    tensors: dict[str, Array] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.numpy().copy()
    save_file(tensors, folder / "model.safetensors")


def logits(case: EncoderDecoderCase, model: Any) -> list[Array]:
    """Of each answer, run whole beside its source alone: [tokens, vocab]."""
    if case.config["model_type"] == "whisper":
        given = [{"input_features": torch.tensor(mel)[None]} for mel in case.mels]
    else:
        given = [{"input_ids": torch.tensor(source)[None]} for source in case.sources]
    with torch.no_grad():
        return [
            np.asarray(
                model(
                    **source,
                    decoder_input_ids=torch.tensor(answer)[None],
                    use_cache=False,
                ).logits[0]
            )
            for source, answer in zip(given, case.answers, strict=True)
        ]


def greedy(case: EncoderDecoderCase, model: Any, source: Array, count: int) -> list[int]:
    """The tokens that `generate` writes after those with which an answer begins."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = model.generate(
            torch.tensor(source)[None],
            max_new_tokens=count,
            do_sample=False,
            num_beams=1,
            eos_token_id=case.config["eos_token_id"],
            decoder_start_token_id=case.config["decoder_start_token_id"],
        )
    return [int(token) for token in made[0, 1:]]
