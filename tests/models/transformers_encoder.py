"""What transformers makes of an encoder's case. Importing it needs torch and transformers."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from paddock.graph import Array
from tests.models.encoder_cases import EncoderCase

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers


def reference(case: EncoderCase) -> Any:
    """The model of this architecture in transformers, with the case's weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config_class = transformers.CONFIG_MAPPING[case.config["model_type"]]
        config = config_class.from_dict(copy.deepcopy(case.config))
        config._attn_implementation = "eager"
        model = getattr(transformers, case.architecture)(config).eval()
    state = model.state_dict()
    made = {n: torch.tensor(case.value(n, tuple(t.shape))) for n, t in state.items()}
    for name, tensor in state.items():  # tied tensors are one
        first = next(n for n, t in state.items() if t.data_ptr() == tensor.data_ptr())
        made[name] = made[first]
    model.load_state_dict(made, strict=True)
    return model


def save(case: EncoderCase, model: Any, folder: Path) -> None:
    """As a checkpoint of Hugging Face: transformers' own names, those that it does not save out."""
    skipped = set(getattr(model, "_tied_weights_keys", None) or {})
    tensors = {n: t.numpy().copy() for n, t in model.state_dict().items() if n not in skipped}
    save_file(tensors, folder / "model.safetensors")


def outputs(case: EncoderCase, model: Any) -> list[Array]:
    """Of each sequence alone: hidden states [tokens, hidden], or logits [tokens or 1, labels]."""
    found = []
    asked = model.base_model if case.architecture.endswith("MaskedLM") else model
    typed = "token_type_embeddings" in " ".join(model.state_dict())
    for ids, types in zip(case.sequences, case.token_types, strict=True):
        given = {"token_type_ids": torch.tensor(types)[None]} if typed else {}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = asked(input_ids=torch.tensor(ids)[None], **given)
        rows = out.logits if hasattr(out, "logits") else out.last_hidden_state[0]
        rows = rows[0] if rows.ndim == 3 else rows
        found.append(np.asarray(rows))
    return found
