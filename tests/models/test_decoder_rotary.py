"""Rotary frequencies of real checkpoints, layer by layer, are those of transformers.

Drawn configurations say everything in `rope_parameters`; published files use older fields, and
leave out what a family takes for granted. Here both are read: files as published, and the same
without any rotary field.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from paddock.graph import Module
from paddock.layers.rotary import Rotary, frequencies
from paddock.models import registry
from tests.golden.make_names import REMOTE
from tests.models.decoder_configs import DECODER_CONFIGS, Config

ROTARY_FIELDS = (
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_pct"),
    *("rotary_emb_base", "rope_local_base_freq"),
)
# Sinusoids of their own, compared through the logits of `test_decoders.py`; or no rotary at all.
OTHERS = ("gptj", "codegen", "gpt2", "gpt_neo", "gpt_bigcode", "opt", "bloom", "mpt")
REPOS = [repo for repo, c in DECODER_CONFIGS.items() if c["model_type"] not in (*REMOTE, *OTHERS)]


def rotaries(module: Module, path: str = "") -> Iterator[tuple[str, Rotary]]:
    for name, child in module.children():
        if isinstance(child, Rotary):
            yield path, child
        elif isinstance(child, Module):
            yield from rotaries(child, f"{path}.{name}")


def theirs(config: Config) -> tuple[Any, Any]:
    """transformers' config and the module that holds its frequencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        kind = config["model_type"].removesuffix("_text")
        module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
        cfg = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(
            json.loads(json.dumps(config))
        )
        (name,) = (n for n in vars(module) if n.endswith("RotaryEmbedding"))
        return cfg, getattr(module, name)(cfg)


@pytest.mark.skipif(
    not importlib.util.find_spec("transformers"), reason="no transformers: `make parity`"
)
@pytest.mark.parametrize("published", [True, False], ids=["published", "defaults"])
@pytest.mark.parametrize("repo", REPOS)
def test_each_layer_turns_as_in_transformers(repo: str, published: bool) -> None:
    config = DECODER_CONFIGS[repo]
    if not published:
        config = {k: v for k, v in config.items() if k not in ROTARY_FIELDS}
    cfg, rotary = theirs(config)
    ours = registry.read(config)
    found = dict(rotaries(ours.build()))
    assert found
    for path, turned in found.items():
        layer = int(next(word for word in path.split(".") if word.isdigit()))
        inverse, factor = frequencies(turned.scaling, turned.head_dim, 8)
        kind = f"{cfg.layer_types[layer]}_" if hasattr(rotary, "full_attention_inv_freq") else ""
        expected = getattr(rotary, f"{kind}inv_freq").numpy()
        np.testing.assert_allclose(
            np.asarray(inverse, np.float32), expected, rtol=2e-6, err_msg=path
        )
        assert factor == pytest.approx(getattr(rotary, f"{kind}attention_scaling"), rel=1e-6)
