"""What transformers makes of a case. Importing it needs torch and transformers."""

from __future__ import annotations

import warnings

import numpy as np

from paddock.graph import Array
from tests.models.parity_cases import Case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers


def transformers_logits(case: Case) -> list[Array]:
    """Logits [tokens, vocab] of each sequence, run whole, in f32, without a cache.

    Sequences run at the length of the longest: what follows a token does not change its logits,
    but the length is what transformers turns "dynamic" and "longrope" positions by, and Paddock
    turns all sequences alike.
    """
    # A copy: transformers writes into the nested dictionaries.
    config_class = transformers.CONFIG_MAPPING[case.config["model_type"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = config_class.from_dict(_copy(case.config))
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32
        ).eval()
        state = {name: torch.tensor(array) for name, array in case.checkpoint().items()}
        if case.config["tie_word_embeddings"]:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            return [
                model(_longer(ids, case.max_context), use_cache=False).logits[0, : len(ids)].numpy()
                for ids in case.sequences
            ]


def _longer(ids: Array, length: int) -> torch.Tensor:
    return torch.tensor(np.pad(ids, (0, length - len(ids))))[None]


def _copy(config: dict[str, object]) -> dict[str, object]:
    return {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
