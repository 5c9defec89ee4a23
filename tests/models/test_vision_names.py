"""Weight maps of models that see are total both ways on published names, at their real sizes.

As the index files of these repositories have them.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from paddock.graph import Mesh
from paddock.models import registry
from paddock.models.config import ConfigError
from paddock.weights import TensorInfo, prove
from tests.golden.make_names import unfold
from tests.models.llama_names import Folded, llama


def qwen2_biases(prefix: str, *, layers: int, q: int, kv: int) -> Folded:
    layer = f"{prefix}.layers.{{0-{layers - 1}}}.self_attn."
    sizes = {"q": q, "k": kv, "v": kv}
    return {f"{layer}{part}_proj.bias": [size] for part, size in sizes.items()}


def tower(
    prefix: str, *, layers: int, hidden: int, inner: int, patch: int, positions: int
) -> Folded:
    """What CLIP's and SigLIP's have in common."""
    layer = f"{prefix}.encoder.layers.{{0-{layers - 1}}}."
    linear = {f"self_attn.{p}_proj": (hidden, hidden) for p in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}
    norms = [f"{layer}layer_norm1", f"{layer}layer_norm2", f"{prefix}.post_layernorm"]
    return {
        f"{prefix}.embeddings.patch_embedding.weight": [hidden, 3, patch, patch],
        f"{prefix}.embeddings.position_embedding.weight": [positions, hidden],
        **{f"{layer}{name}.weight": list(shape) for name, shape in linear.items()},
        **{f"{layer}{name}.bias": [shape[0]] for name, shape in linear.items()},
        **{f"{norm}.{part}": [hidden] for norm in norms for part in ("weight", "bias")},
    }


def projector(vision: int, hidden: int) -> Folded:
    return {
        "multi_modal_projector.linear_1.weight": [hidden, vision],
        "multi_modal_projector.linear_1.bias": [hidden],
        "multi_modal_projector.linear_2.weight": [hidden, hidden],
        "multi_modal_projector.linear_2.bias": [hidden],
    }


_CLIP, _TEXT = "vision_tower.vision_model", "language_model.model"
PUBLISHED: dict[str, tuple[dict[str, Any], Folded]] = {
    "llava-hf/llava-1.5-7b-hf": (
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_token_index": 32000,
            "model_type": "llava",
            "pad_token_id": 32001,
            "projector_hidden_act": "gelu",
            "text_config": {
                "_name_or_path": "lmsys/vicuna-7b-v1.5",
                "architectures": ["LlamaForCausalLM"],
                "max_position_embeddings": 4096,
                "model_type": "llama",
                "rms_norm_eps": 1e-05,
                "torch_dtype": "float16",
                "vocab_size": 32064,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "vision_config": {
                "hidden_size": 1024,
                "image_size": 336,
                "intermediate_size": 4096,
                "model_type": "clip_vision_model",
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": 14,
                "projection_dim": 768,
                "vocab_size": 32000,
            },
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vocab_size": 32064,
        },
        llama(_TEXT, layers=32, hidden=4096, inner=11008, q=4096, kv=4096, vocab=32064)
        | tower(_CLIP, layers=24, hidden=1024, inner=4096, patch=14, positions=577)
        | projector(1024, 4096)
        | {
            "language_model.lm_head.weight": [32064, 4096],
            f"{_CLIP}.embeddings.class_embedding": [1024],
            f"{_CLIP}.pre_layrnorm.weight": [1024],
            f"{_CLIP}.pre_layrnorm.bias": [1024],
        },
    ),
    "llava-hf/llava-interleave-qwen-0.5b-hf": (
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_token_index": 151646,
            "model_type": "llava",
            "projector_hidden_act": "gelu",
            "text_config": {
                "_name_or_path": "Qwen/Qwen1.5-0.5B-Chat",
                "architectures": ["Qwen2ForCausalLM"],
                "hidden_size": 1024,
                "intermediate_size": 2816,
                "max_window_layers": 21,
                "model_type": "qwen2",
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "num_key_value_heads": 16,
                "rope_theta": 1000000.0,
                "tie_word_embeddings": True,
                "torch_dtype": "bfloat16",
                "vocab_size": 152000,
            },
            "torch_dtype": "float16",
            "vision_config": {
                "hidden_size": 1152,
                "image_size": 384,
                "intermediate_size": 4304,
                "model_type": "siglip_vision_model",
                "num_attention_heads": 16,
                "num_hidden_layers": 26,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        llama(_TEXT, layers=24, hidden=1024, inner=2816, q=1024, kv=1024, vocab=152000)
        | qwen2_biases(_TEXT, layers=24, q=1024, kv=1024)
        | tower(_CLIP, layers=26, hidden=1152, inner=4304, patch=14, positions=729)
        | projector(1152, 1024)
        | {f"{_CLIP}.embeddings.patch_embedding.bias": [1152]},
    ),
}

_GEMMA = f"{_TEXT}.layers.{{0-33}}."
PUBLISHED["google/gemma-3-4b-it"] = (
    {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    llama(_TEXT, layers=34, hidden=2560, inner=10240, q=2048, kv=1024, vocab=262208)
    | {f"{_GEMMA}self_attn.{part}_norm.weight": [256] for part in "qk"}
    | {f"{_GEMMA}{part}_feedforward_layernorm.weight": [2560] for part in ("pre", "post")}
    | tower(_CLIP, layers=27, hidden=1152, inner=4304, patch=14, positions=4096)
    | {
        f"{_CLIP}.embeddings.patch_embedding.bias": [1152],
        "multi_modal_projector.mm_input_projection_weight": [1152, 2560],
        "multi_modal_projector.mm_soft_emb_norm.weight": [1152],
    },
)
_TEXT3, _TOWER3 = "model.text_model", "model.vision_model"
PUBLISHED["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"] = (
    {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": 49190,
        "model_type": "smolvlm",
        "pad_token_id": 128002,
        "scale_factor": 4,
        "text_config": {
            "_flash_attn_2_enabled": True,
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 64,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "num_attention_heads": 15,
            "num_hidden_layers": 32,
            "num_key_value_heads": 5,
            "pad_token_id": 2,
            "perceiver_config": {"qk_layer_norms_perceiver": False, "resampler_depth": 6},
            "pixel_shuffle_factor": 4,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "use_resampler": False,
            "vocab_size": 49280,
        },
        "tie_word_embeddings": False,
        "use_reentrant_checkpointing": False,
        "vision_config": {
            "hidden_size": 768,
            "image_size": 512,
            "max_image_size": {"longest_edge": 512},
            "model_type": "smolvlm_vision",
            "num_attention_heads": 12,
            "patch_size": 16,
            "size": {"longest_edge": 2048},
            "tie_word_embeddings": False,
            "use_base_siglip": False,
        },
        "vocab_size": 49280,
    },
    llama(_TEXT3, layers=32, hidden=960, inner=2560, q=960, kv=320, vocab=49280)
    | tower(_TOWER3, layers=12, hidden=768, inner=3072, patch=16, positions=1024)
    | {
        f"{_TOWER3}.embeddings.patch_embedding.bias": [768],
        "model.connector.modality_projection.proj.weight": [960, 12288],
        "lm_head.weight": [49280, 960],
    },
)
_QWEN = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "image_token_id": 151655,
    "initializer_range": 0.02,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "video_token_id": 151656,
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
    "vision_token_id": 151654,
    "vocab_size": 151936,
}


def qwen_tower(hidden: int, outputs: int, mlp: dict[str, tuple[int, int]]) -> Folded:
    block, merged = "visual.blocks.{0-31}.", 4 * hidden
    linear = {"attn.qkv": (3 * hidden, hidden), "attn.proj": (hidden, hidden)}
    linear = {f"{block}{name}": shape for name, shape in (linear | mlp).items()}
    linear |= {"visual.merger.mlp.0": (merged, merged), "visual.merger.mlp.2": (outputs, merged)}
    norms = ("norm1", "norm2")
    return {
        "visual.patch_embed.proj.weight": [hidden, 3, 2, 14, 14],
        "visual.merger.ln_q.weight": [hidden],
        **{f"{block}{norm}.weight": [hidden] for norm in norms},
        **{f"{name}.weight": list(shape) for name, shape in linear.items()},
        **{f"{name}.bias": [shape[0]] for name, shape in linear.items()},
    }


PUBLISHED["Qwen/Qwen2-VL-2B-Instruct"] = (
    _QWEN
    | {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "qwen2_vl",
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 1536,
            "in_channels": 3,
            "in_chans": 3,
            "mlp_ratio": 4,
            "model_type": "qwen2_vl",
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    },
    llama("model", layers=28, hidden=1536, inner=8960, q=1536, kv=256, vocab=151936)
    | qwen2_biases("model", layers=28, q=1536, kv=256)
    | qwen_tower(1280, 1536, {"mlp.fc1": (5120, 1280), "mlp.fc2": (1280, 5120)})
    | {f"visual.blocks.{{0-31}}.{norm}.bias": [1280] for norm in ("norm1", "norm2")}
    | {"visual.merger.ln_q.bias": [1280]},
)
PUBLISHED["Qwen/Qwen2.5-VL-3B-Instruct"] = (
    _QWEN
    | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "vision_config": {
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    },
    llama("model", layers=36, hidden=2048, inner=11008, q=2048, kv=256, vocab=151936)
    | qwen2_biases("model", layers=36, q=2048, kv=256)
    | qwen_tower(
        1280,
        2048,
        {f"mlp.{part}_proj": (3420, 1280) for part in ("gate", "up")}
        | {"mlp.down_proj": (1280, 3420)},
    ),
)
BLIND = "google/gemma-3-4b-it"
"""Also published as its text model alone, under the same class."""


@pytest.mark.parametrize("repo", PUBLISHED)
def test_every_slot_and_every_tensor_has_its_other_side(repo: str) -> None:
    check(*PUBLISHED[repo])


def test_a_model_that_sees_may_be_published_without_its_tower() -> None:
    config, names = PUBLISHED[BLIND]
    text = {name: shape for name, shape in names.items() if name.startswith("language_model.")}
    config = {name: value for name, value in config.items() if name != "vision_config"}
    assert registry.read(config).image_form is None
    check(config, text)
    bare = {name.replace(_TEXT, "model.language_model"): shape for name, shape in text.items()}
    check(config, bare)


@pytest.mark.parametrize("repo", ["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"])
def test_files_may_have_an_object_of_the_text_model(repo: str) -> None:
    """As transformers saves them, with what was beside it there, too, or only there."""
    flat, _ = PUBLISHED[repo]
    expected = registry.read(flat).config
    own = ("architectures", "model_type", "vision_config", "tie_word_embeddings")
    text = {name: value for name, value in flat.items() if name not in own}
    text |= {"model_type": f"{flat['model_type']}_text"}
    only = {name: flat[name] for name in own} | {"text_config": text}
    assert registry.read(only).config == expected
    assert registry.read(flat | {"text_config": text}).config == expected
    with pytest.raises(ConfigError, match="does not know the field 'hidden_size' = 16"):
        registry.read(only | {"hidden_size": 16})


def check(config: dict[str, Any], names: Folded) -> None:
    architecture = registry.read(config)
    slots = dict(architecture.build().named_parameters())
    tensors = {name: TensorInfo(name, "BF16", shape) for name, shape in unfold(names).items()}
    binding = prove(
        slots,
        tensors,
        importlib.import_module(architecture.weight_map).HUGGING_FACE,
        Mesh(),
        tied=bool(getattr(architecture.config, "tie_word_embeddings", False)),
    )
    assert set(binding.slots) == set(slots)
    assert not binding.ignored


def test_images_take_the_places_of_as_many_tokens_as_published() -> None:
    tokens = {}
    for repo, (config, _) in PUBLISHED.items():
        form = registry.read(config).image_form
        assert form is not None
        if form.side is None:  # of any size
            assert form.grid
            continue
        tokens[repo] = (
            (form.side // form.patch_size) ** 2 // form.window**2
            + form.class_token
            - form.first_row
        )
    assert tokens == {
        "llava-hf/llava-1.5-7b-hf": 576,
        "llava-hf/llava-interleave-qwen-0.5b-hf": 729,
        "google/gemma-3-4b-it": 256,
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 64,
    }
