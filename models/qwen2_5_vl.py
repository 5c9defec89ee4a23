"""Qwen2.5-VL: Qwen2-VL with a gated tower, most of whose layers see an area of an image.

Bai et al. 2025, arxiv.org/abs/2502.13923. Videos are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module
from paddock.layers import RMSNorm, TowerGatedMLP
from paddock.models.config import ActivationName, Size
from paddock.models.llama import LlamaBlock
from paddock.models.qwen2_vl import (
    TEXT_SIZES,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLTextConfig,
)
from paddock.models.qwen_vision import QwenVisionConfig, QwenVisionTransformer
from paddock.models.vision_language import Part


class Qwen2_5_VLVisionConfig(QwenVisionConfig):
    hidden_size: Size = 3584
    hidden_act: ActivationName = "silu"
    intermediate_size: Size = 3420
    out_hidden_size: Size = 3584
    window_size: int = Field(112, gt=0, le=2**14)
    fullatt_block_indexes: Annotated[tuple[int, ...], Field(strict=False)] = (7, 15, 23, 31)

    ignored: ClassVar[frozenset[str]] = frozenset({"tokens_per_second"})  # of videos

    @model_validator(mode="after")
    def _areas_are_windows(self) -> Self:
        if self.window_size < self.patch_size * self.spatial_merge_size:
            raise ValueError(
                f"window_size {self.window_size} is less than the side of {self.spatial_merge_size}"
                f" patches of {self.patch_size}"
            )
        return self

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def window_width(self) -> int:
        return self.out_hidden_size

    @property
    def area(self) -> int:
        return self.window_size // self.spatial_merge_size // self.patch_size

    def sees_all(self, layer: int) -> bool:
        return layer in self.fullatt_block_indexes

    def norm(self) -> Module:
        return RMSNorm(self.hidden_size, eps=1e-6)

    def mlp(self) -> Module:
        return TowerGatedMLP(self.hidden_size, self.intermediate_size, activation=self.hidden_act)


class Qwen2_5_VLConfig(Qwen2VLConfig):
    text_parts: ClassVar[Mapping[str, Part]] = {
        "qwen2_5_vl_text": Part(LlamaBlock, Qwen2VLTextConfig, TEXT_SIZES)
    }
    vision_parts: ClassVar[Mapping[str, Part]] = {
        "qwen2_5_vl_vision": Part(QwenVisionTransformer, Qwen2_5_VLVisionConfig, {}),
        "qwen2_5_vl": Part(QwenVisionTransformer, Qwen2_5_VLVisionConfig, {}),  # in older files
    }


class Qwen2_5_VLForConditionalGeneration(Qwen2VLForConditionalGeneration):
    Config: ClassVar[type[Qwen2VLConfig]] = Qwen2_5_VLConfig
