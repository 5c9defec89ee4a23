"""Weight maps of experts and states are total both ways on real checkpoints' tensor names.

There is no network here: the names are those of transformers' models of these sizes, built on the
meta device and turned by transformers itself into what checkpoints hold; gpt-oss' four bits are
written down. The sizes make up the number of parameters that is published.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import warnings

import pytest

from paddock.graph import Mesh
from paddock.models import registry
from paddock.weights import TensorInfo, prove
from tests.models.expert_configs import EXPERT_CONFIGS, PARAMETERS, Config

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)


def published(config: Config) -> dict[str, TensorInfo]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers
        from transformers.core_model_loading import revert_weight_conversion

        fields = json.loads(json.dumps(config))
        fields.pop("quantization_config", None)
        kind = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(fields)
        (named,) = config["architectures"]
        named = {"PhiMoEForCausalLM": "PhimoeForCausalLM"}.get(named, named)
        with torch.device("meta"):
            model = getattr(transformers, named)(kind)
        tensors = revert_weight_conversion(model, model.state_dict())
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if getattr(kind, "tie_word_embeddings", False):
        shapes.pop("lm_head.weight", None)
    if config["model_type"] == "gpt_oss":
        return four_bits(shapes)
    return {name: TensorInfo(name, "BF16", shape) for name, shape in shapes.items()}


def four_bits(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    """The experts' products as bytes of two numbers, in groups of 32 that share a scale."""
    found = {}
    for name, shape in shapes.items():
        if name.endswith((".gate_up_proj", ".down_proj")):
            experts, inputs, outputs = shape
            groups = (experts, outputs, inputs // 32)
            found[f"{name}_blocks"] = TensorInfo(f"{name}_blocks", "U8", (*groups, 16))
            found[f"{name}_scales"] = TensorInfo(f"{name}_scales", "U8", groups)
        else:
            found[name] = TensorInfo(name, "BF16", shape)
    return found


def numbers(tensor: TensorInfo) -> int:
    """How many weights a tensor holds."""
    if tensor.name.endswith("_scales"):
        return 0
    return math.prod(tensor.shape) * (2 if tensor.name.endswith("_blocks") else 1)


@pytest.mark.parametrize("repo", EXPERT_CONFIGS)
def test_every_slot_and_every_tensor_has_its_other_side(repo: str) -> None:
    config = EXPERT_CONFIGS[repo]
    architecture = registry.read(config)
    model = architecture.build()
    model.assign_names()
    slots = dict(model.named_parameters())
    tied = bool(getattr(architecture.config, "tie_word_embeddings", False))
    rules = importlib.import_module(architecture.weight_map).HUGGING_FACE
    tensors = published(config)
    binding = prove(slots, tensors, rules, Mesh(), tied=tied)
    assert set(binding.slots) == set(slots)
    assert not binding.ignored
    if repo in PARAMETERS:
        assert sum(map(numbers, tensors.values())) == pytest.approx(PARAMETERS[repo], rel=0.01)


@pytest.mark.parametrize(
    ("repo", "behind"),
    [
        ("moonshotai/Moonlight-16B-A3B-Instruct", "model.layers.61.mlp.gate.weight"),
        ("zai-org/GLM-4.5-Air", "model.layers.46.eh_proj.weight"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "mtp.fc.weight"),
    ],
)
def test_layers_that_predict_a_second_token_are_left_unread(repo: str, behind: str) -> None:
    rules = importlib.import_module(registry.read(EXPERT_CONFIGS[repo]).weight_map).HUGGING_FACE
    small = EXPERT_CONFIGS[repo] | {"num_hidden_layers": 2}
    model = registry.read(small).build()
    model.assign_names()
    tensors = published(small) | {behind: TensorInfo(behind, "BF16", (8, 8))}
    binding = prove(dict(model.named_parameters()), tensors, rules, Mesh())
    assert binding.ignored == (behind,)


def test_every_family_has_a_real_checkpoint_here() -> None:
    from tests.models import expert_draws, state_draws

    drawn = {
        module
        for source in (expert_draws, state_draws)
        for module in (vars(source).keys() & {c["model_type"] for c in EXPERT_CONFIGS.values()})
    }
    # DeepSeek-V3 itself is published in fp8, which is not read; Moonlight is of its class.
    assert drawn == {c["model_type"] for c in EXPERT_CONFIGS.values()}
