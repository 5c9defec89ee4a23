"""Tiny models that see, drawn: their configs, prompts with images, and random weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from paddock.graph import Array
from paddock.models import registry
from paddock.models.images import ImageForm
from paddock.runtime.images.prepared import PlacedImage, PreparedImage, packed, prepare

Config = dict[str, Any]
SEEDS = (1, 2, 3)
CONTEXT = 96


def _tower(random: np.random.Generator, kind: str) -> Config:
    heads = int(random.integers(1, 4))
    side = int(random.integers(2, 5))
    return {
        "model_type": kind,
        "hidden_size": heads * int(random.integers(2, 7)),
        "num_attention_heads": heads,
        "num_hidden_layers": int(random.integers(2, 5)),
        "intermediate_size": int(random.integers(5, 30)),
        "patch_size": side,
        "image_size": side * int(random.integers(2, 5)) + int(random.integers(0, side)),
        "hidden_act": str(random.choice(["quick_gelu", "gelu", "gelu_pytorch_tanh"])),
        "layer_norm_eps": float(random.choice([1e-5, 0.05])),
    }


def _text(random: np.random.Generator, kind: str) -> Config:
    kv_heads = int(random.integers(1, 3))
    heads = kv_heads * int(random.integers(1, 4))
    size = 2 * int(random.integers(2, 7))
    drawn = {
        "model_type": kind,
        "vocab_size": 12 * int(random.integers(4, 8)),
        "hidden_size": int(random.integers(3, 9)) * 4,
        "intermediate_size": 12 * int(random.integers(1, 4)),
        "num_hidden_layers": int(random.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": float(random.choice([1e-6, 0.05])),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(random.choice([1e2, 1e4]))},
    }
    if kind == "mistral":
        drawn["sliding_window"] = int(random.integers(5, 20))
    if kind == "qwen2":
        drawn |= {"hidden_size": heads * size}
        del drawn["head_dim"]
    return drawn


_PARTS = {1: ("llama", "clip"), 2: ("qwen2", "siglip"), 3: ("mistral", "clip")}


def _llava(random: np.random.Generator, seed: int) -> Config:
    text_kind, tower_kind = _PARTS[seed]
    tower = _tower(random, f"{tower_kind}_vision_model")
    if tower_kind == "siglip":
        tower["vision_use_head"] = False
    layers = tower["num_hidden_layers"]
    several = sorted(int(n) for n in random.choice(np.arange(-layers - 1, 0), 2, replace=False))
    text = _text(random, text_kind)
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": text,
        "vision_config": tower,
        "image_token_index": int(random.integers(4, text["vocab_size"])),
        "projector_hidden_act": str(random.choice(["gelu", "relu"])),
        "vision_feature_select_strategy": str(random.choice(["default", "full"])),
        "vision_feature_layer": several if random.integers(0, 2) else several[0],
        "multimodal_projector_bias": bool(random.integers(0, 2)),
        "tie_word_embeddings": bool(random.integers(0, 2)),
    }


def _gemma3(random: np.random.Generator, seed: int) -> Config:
    tower = _tower(random, "siglip_vision_model") | {"vision_use_head": False}
    tokens, window = int(random.integers(2, 4)), int(random.integers(1, 4))
    tower["image_size"] = tower["patch_size"] * tokens * window
    text = _text(random, "gemma3_text")
    del text["rope_parameters"]
    layers = int(random.integers(2, 5))
    return {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text
        | {
            "num_hidden_layers": layers,
            "sliding_window": tokens**2 + int(random.integers(0, 6)),
            "sliding_window_pattern": int(random.integers(2, 4)),
            "query_pre_attn_scalar": int(random.integers(4, 30)),
            "rope_scaling": {"rope_type": "linear", "factor": 8.0} if seed == 2 else None,
        },
        "vision_config": tower,
        "mm_tokens_per_image": tokens**2,
        "image_token_index": int(random.integers(4, text["vocab_size"])),
        "boi_token_index": 2,
        "eoi_token_index": 3,
        "tie_word_embeddings": True,
    }


def _idefics3(random: np.random.Generator, seed: int) -> Config:
    name, kind = (
        ("SmolVLMForConditionalGeneration", "smolvlm")
        if seed == 2
        else ("Idefics3ForConditionalGeneration", "idefics3")
    )
    scale = int(random.integers(1, 4))
    tower = _tower(random, f"{kind}_vision")
    tower["image_size"] = tower["patch_size"] * scale * int(random.integers(1, 3))
    text = _text(random, "llama")
    text["hidden_size"] = text["num_attention_heads"] * 4 * int(random.integers(1, 4))
    return {
        "model_type": kind,
        "architectures": [name],
        "text_config": text | {"pad_token_id": 0},
        "vision_config": tower,
        "image_token_id": int(random.integers(4, text["vocab_size"])),
        "scale_factor": scale,
        "tie_word_embeddings": bool(random.integers(0, 2)),
    }


def _qwen2_vl(random: np.random.Generator, seed: int) -> Config:
    kv_heads = int(random.integers(1, 3))
    heads = kv_heads * int(random.integers(1, 4))
    sections = [int(n) for n in random.integers(1, 4, 3)]
    hidden = heads * 2 * sum(sections)
    text: Config = {
        "vocab_size": 12 * int(random.integers(4, 8)),
        "hidden_size": hidden,
        "intermediate_size": 12 * int(random.integers(1, 4)),
        "num_hidden_layers": int(random.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": float(random.choice([1e-6, 0.05])),
        "rope_theta": float(random.choice([1e2, 1e4])),
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
        "use_sliding_window": bool(seed == 3),
        "sliding_window": int(random.integers(5, 20)),
        "max_window_layers": 0,
    }
    tower_heads = int(random.integers(1, 4))
    tower: Config = {
        "depth": int(random.integers(2, 5)),
        "embed_dim": tower_heads * 4 * int(random.integers(1, 4)),
        "hidden_size": hidden,
        "hidden_act": str(random.choice(["quick_gelu", "gelu"])),
        "mlp_ratio": int(random.integers(1, 4)),
        "num_heads": tower_heads,
        "patch_size": int(random.integers(2, 5)),
        "spatial_merge_size": int(random.integers(1, 4)),
        "temporal_patch_size": int(random.integers(1, 3)),
    }
    return {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "text_config": text,
        "vision_config": tower,
        "image_token_id": int(random.integers(4, text["vocab_size"])),
        "video_token_id": 1,
        "tie_word_embeddings": bool(random.integers(0, 2)),
    }


def _qwen2_5_vl(random: np.random.Generator, seed: int) -> Config:
    drawn = _qwen2_vl(random, seed)
    tower = drawn["vision_config"]
    side = tower["patch_size"] * tower["spatial_merge_size"]
    del tower["mlp_ratio"]
    tower |= {
        "hidden_size": tower.pop("embed_dim"),
        "out_hidden_size": drawn["text_config"]["hidden_size"],
        "hidden_act": "silu",
        "intermediate_size": int(random.integers(5, 30)),
        "window_size": side * int(random.integers(1, 4)) + int(random.integers(0, side)),
        "fullatt_block_indexes": [int(random.integers(0, tower["depth"]))],
    }
    return drawn | {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    }


DRAW: dict[str, Callable[[np.random.Generator, int], Config]] = {
    "llava": _llava,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
}
NAMES = tuple(f"{family}/{seed}" for family in DRAW for seed in SEEDS)


@dataclass(frozen=True)
class VisionCase:
    """`llava/1`: a family, and the seed of its config."""

    name: str

    @property
    def config(self) -> Config:
        family, _, seed = self.name.partition("/")
        return DRAW[family](np.random.default_rng(zlib.crc32(self.name.encode())), int(seed))

    @cached_property
    def form(self) -> ImageForm:
        found = registry.read(self.config).image_form
        assert found is not None
        return found

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Of no image, one and two; the last begins with the first image of the one before."""
        random = self.random("prompts")
        first, second, third = (self.pixels(random) for _ in range(3))
        apart = int(self.form.whole or self.form.grid)
        return [
            self.prompt(random, pixels, lengths)
            for pixels, lengths in (
                ([], [21]),
                ([first], [5, 9]),
                ([second, third], [1, 4, 3]),
                ([second, first], [apart, apart, 2]),
            )
        ]

    def prompt(
        self, random: np.random.RandomState, pixels: list[Array], lengths: list[int]
    ) -> Prompt:
        """So many tokens of text before, between and after the images."""
        ids: list[int] = []
        placed = []
        for i, length in enumerate(lengths):
            if i:
                image = prepare(pixels[i - 1], self.form)
                placed.append(PlacedImage(image, len(ids)))
                ids += [self.form.token_id] * len(image.rows)
            drawn = random.randint(0, self.config["text_config"]["vocab_size"] - 1, length)
            ids += [int(n) + (n >= self.form.token_id) for n in drawn]
        return Prompt(np.array(ids, np.int64), pixels, placed)

    def pixels(self, random: np.random.RandomState) -> Array:
        form = self.form
        if form.side is None:
            height, width = (
                form.patch_size * form.window * int(random.randint(1, 5)) for _ in "ab"
            )
        else:
            height = width = form.side
        return random.standard_normal((form.channels, height, width)).astype(np.float32)

    def value(self, name: str, shape: tuple[int, ...]) -> Array:
        """A weight: large enough for attention to be sharp, so that what is wrong shows."""
        values = self.random(name).standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.3 * values
        elif len(shape) == 1:
            values = 0.5 * values
        elif "patch_embedding" in name:
            values = 1.2 * values / np.sqrt(np.prod(shape[1:]))
        elif "embed" not in name:
            values = 1.2 * values / np.sqrt(shape[-1])
        return np.asarray(values, np.float32)

    def random(self, label: str) -> np.random.RandomState:
        return np.random.RandomState(zlib.crc32(f"{label} of {self.name}".encode()))


@dataclass(frozen=True, eq=False)
class Prompt:
    token_ids: Array
    pixels: list[Array]
    """Of its images, [channels, height, width] each."""
    placed: list[PlacedImage]


def image_inputs(images: list[PreparedImage], rows: list[Array], size: int) -> dict[str, Array]:
    """A step's arrays of images; `rows` are of each of its sequences' new tokens."""
    return {"image_rows": np.concatenate(rows).astype(np.int64), **packed(images, size)}
