"""Idefics 3 and SmolVLM: a Llama that reads windows of a SigLIP tower's patches, tile by tile.

Laurencon et al. 2024, arxiv.org/abs/2408.12637; Marafioti et al. 2025, arxiv.org/abs/2504.05299.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from paddock.graph import Module, Tensor
from paddock.graph import ops as F
from paddock.layers import ReplicatedLinear, Step, VocabHead
from paddock.models.config import Heads, Layers, Size
from paddock.models.images import ImageForm, TiledImageForm
from paddock.models.llama import LlamaBlock, LlamaConfig, LlamaModel
from paddock.models.siglip_vision_model import SiglipVisionConfig, SiglipVisionModel
from paddock.models.vision_language import Part, VisionLanguageConfig


class Idefics3VisionConfig(SiglipVisionConfig):
    hidden_size: Size = 1152
    num_attention_heads: Heads = 16
    patch_size: int = Field(32, gt=0, le=2**10)
    num_hidden_layers: Layers = 12

    ignored: ClassVar[frozenset[str]] = SiglipVisionConfig.ignored | {
        *("max_image_size", "size", "tie_word_embeddings", "use_base_siglip"),
    }

    @model_validator(mode="after")
    def _places_are_told_apart(self) -> Self:
        """Places are computed as fractions of a side, which f32 rounds; for some sizes into one."""
        side = self.image_size // self.patch_size
        bounds = np.arange(1 / side, 1.0, 1 / side).astype(np.float32)
        places = np.arange(side, dtype=np.float32) * np.float32(1 / side)
        if (np.searchsorted(bounds, places, side="right") != np.arange(side)).any():
            raise ValueError(
                f"image_size {self.image_size} in patches of {self.patch_size}: places of {side}"
                " patches on a side are not told apart in f32, as they were in training"
            )
        return self


class Idefics3TextConfig(LlamaConfig):
    ignored: ClassVar[frozenset[str]] = LlamaConfig.ignored | {
        *("_flash_attn_2_enabled", "pixel_shuffle_factor"),  # of the trainer's own class
        "perceiver_config",  # of a resampler that is not there
    }


class Idefics3Config(VisionLanguageConfig):
    text_config: Idefics3TextConfig
    vision_config: Idefics3VisionConfig
    image_token_id: int = Field(128_257, ge=0)
    scale_factor: int = Field(2, gt=0, le=16)
    tie_word_embeddings: bool = False

    text_parts: ClassVar[Mapping[str, Part]] = {
        "llama": Part(
            LlamaBlock,
            Idefics3TextConfig,
            {
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "rms_norm_eps": 1e-5,
            },
        )
    }
    vision_parts: ClassVar[Mapping[str, Part]] = {
        "idefics3_vision": Part(SiglipVisionModel, Idefics3VisionConfig, {}),
        "idefics3": Part(SiglipVisionModel, Idefics3VisionConfig, {}),  # as files say it, too
        "smolvlm_vision": Part(SiglipVisionModel, Idefics3VisionConfig, {}),
        "smolvlm": Part(SiglipVisionModel, Idefics3VisionConfig, {}),
    }
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"_pad_token_id", "use_reentrant_checkpointing", "vocab_size"}
    )

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        side = self.vision_config.image_size // self.vision_config.patch_size
        if side % self.scale_factor:
            raise ValueError(f"scale_factor {self.scale_factor} does not divide {side} patches")
        return self

    @property
    def image_form(self) -> ImageForm:
        vision = self.vision_config
        return TiledImageForm(
            token_id=self.image_token_id,
            patch_size=vision.patch_size,
            channels=vision.num_channels,
            side=vision.image_size,
            window=self.scale_factor,
        )


class Idefics3SimpleMLP(Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        self.proj = ReplicatedLinear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Idefics3Connector(Module):
    """A window's patches, one behind another, in one product."""

    def __init__(self, cfg: Idefics3Config) -> None:
        self.patches = cfg.scale_factor**2
        inputs = cfg.vision_config.hidden_size * self.patches
        self.modality_projection = Idefics3SimpleMLP(inputs, cfg.text_config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: [patches, vision hidden], windows one after another -> [windows, hidden]."""
        return self.modality_projection(F.fold_rows(x, self.patches))


class Idefics3Model(Module):
    def __init__(self, cfg: Idefics3Config) -> None:
        self.vision_model = SiglipVisionModel(cfg.vision_config)
        self.connector = Idefics3Connector(cfg)
        self.text_model = LlamaModel(cfg.text_config, LlamaBlock)

    def forward(self, step: Step) -> Tensor:
        last = self.vision_model.post_layernorm(self.vision_model(step)[-1])
        x = self.text_model.embed_tokens(step.token_ids)
        return self.text_model(step, F.replace_rows(x, self.connector(last), step.image_rows))


class Idefics3ForConditionalGeneration(Module):
    Config: ClassVar[type[Idefics3Config]] = Idefics3Config
    weight_map: ClassVar[str] = "paddock.weights.idefics3"

    def __init__(self, cfg: Idefics3Config) -> None:
        self.model = Idefics3Model(cfg)
        self.lm_head = VocabHead(cfg.text_config.hidden_size, cfg.text_config.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)


class SmolVLMForConditionalGeneration(Idefics3ForConditionalGeneration):
    """SmolVLM 2: the same; its videos are not read."""
