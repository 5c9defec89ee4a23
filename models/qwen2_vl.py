"""Qwen2-VL: Qwen2 beside a tower that reads images of any size; tokens turn by rows and columns.

Wang et al. 2024, arxiv.org/abs/2409.12191. Videos are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Tensor
from paddock.graph import ops as F
from paddock.layers import (
    LayerNorm,
    Rotary,
    RotaryScaling,
    SectionedRotary,
    Step,
    TowerMLP,
    VocabHead,
)
from paddock.models.config import ActivationName, Size
from paddock.models.images import ImageForm
from paddock.models.llama import LlamaBlock, LlamaModel
from paddock.models.qwen2 import Qwen2Config
from paddock.models.qwen_vision import QwenVisionConfig, QwenVisionTransformer
from paddock.models.vision_language import Part, VisionLanguageConfig


class Qwen2VLVisionConfig(QwenVisionConfig):
    embed_dim: Size = 1280
    hidden_size: Size = 3584
    hidden_act: ActivationName = "quick_gelu"
    mlp_ratio: int = Field(4, gt=0, le=64)

    @property
    def width(self) -> int:
        return self.embed_dim

    @property
    def window_width(self) -> int:
        return self.hidden_size

    def norm(self) -> Module:
        return LayerNorm(self.embed_dim, eps=1e-6)

    def mlp(self) -> Module:
        inner = self.embed_dim * self.mlp_ratio
        return TowerMLP(self.embed_dim, inner, activation=self.hidden_act)


# Of which the tokenizer knows the text, or which are of videos.
_TOKENS = frozenset(
    {"video_token_id", "vision_end_token_id", "vision_start_token_id", "vision_token_id"}
)


class Qwen2VLTextConfig(Qwen2Config):
    max_window_layers: int = Field(80, ge=0)

    default_theta: ClassVar[float] = 1_000_000.0
    ignored: ClassVar[frozenset[str]] = Qwen2Config.ignored | _TOKENS | {"image_token_id"}

    def scaling(self) -> RotaryScaling:
        plain = {
            name: _without_sections(getattr(self, name))
            for name in ("rope_scaling", "rope_parameters")
        }
        return Qwen2Config.scaling(self.model_copy(update=plain))

    @property
    def sections(self) -> tuple[int, int, int]:
        """How many pairs turn by time, by rows and by columns."""
        given = {**(self.rope_scaling or {}), **(self.rope_parameters or {})}
        found = given.get("mrope_section", [16, 24, 24])
        if not isinstance(found, list) or len(found) != 3 or not all(type(n) is int for n in found):
            raise ValueError(f"mrope_section is {str(found)[:80]}, expected three whole numbers")
        return found[0], found[1], found[2]

    @model_validator(mode="after")
    def _sections_are_of_a_head(self) -> Self:
        SectionedRotary(self.head_dim, self.scaling(), self.sections)
        return self

    def rotary(self, layer: int) -> Rotary:
        return SectionedRotary(self.head_dim, self.scaling(), self.sections)


def _without_sections(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of `rope_scaling` or `rope_parameters` what says how far pairs turn."""
    if given is None:
        return None
    said = {name: value for name, value in given.items() if name != "mrope_section"}
    kinds = {"type", "rope_type"}
    return {k: "default" if k in kinds and v == "mrope" else v for k, v in said.items()}


TEXT_SIZES = {
    "vocab_size": 152_064,
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}


class Qwen2VLConfig(VisionLanguageConfig):
    text_config: Qwen2VLTextConfig
    vision_config: QwenVisionConfig
    image_token_id: int = Field(151_655, ge=0)
    tie_word_embeddings: bool = False

    text_parts: ClassVar[Mapping[str, Part]] = {
        "qwen2_vl_text": Part(LlamaBlock, Qwen2VLTextConfig, TEXT_SIZES)
    }
    vision_parts: ClassVar[Mapping[str, Part]] = {
        "qwen2_vl_vision": Part(QwenVisionTransformer, Qwen2VLVisionConfig, {}),
        "qwen2_vl": Part(QwenVisionTransformer, Qwen2VLVisionConfig, {}),  # in older files
    }
    tower: ClassVar[str] = "visual"
    ignored: ClassVar[frozenset[str]] = _TOKENS

    @classmethod
    def read(cls, data: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> Self:
        """Published files have the text model's fields beside the tower's object; those of newer
        releases of transformers have an object of them, or both."""
        own = {*cls.model_fields, *cls.ignored, "architectures", "model_type"}
        beside = {name: value for name, value in data.items() if name not in own}
        text = data.get("text_config")
        if text is None:
            rest = {name: value for name, value in data.items() if name in own}
            return super().read({**rest, "text_config": beside}, ignore=ignore)
        if isinstance(text, dict):
            again = {n for n, value in beside.items() if n in text and text[n] == value}
            data = {name: value for name, value in data.items() if name not in again}
        return super().read(data, ignore=ignore)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        text, vision = self.text_config, self.vision_config
        if vision.window_width != text.hidden_size:
            raise ValueError(
                f"the tower makes {vision.window_width} numbers of a window, the text model has"
                f" hidden_size {text.hidden_size}"
            )
        return self

    @property
    def image_form(self) -> ImageForm:
        vision = self.vision_config
        return ImageForm(
            token_id=self.image_token_id,
            patch_size=vision.patch_size,
            channels=vision.in_channels,
            frames=vision.temporal_patch_size,
            window=vision.spatial_merge_size,
            area=vision.area,
            grid=True,
        )


class Qwen2VLModel(Module):
    def __init__(self, cfg: Qwen2VLConfig) -> None:
        self.visual = QwenVisionTransformer(cfg.vision_config)
        self.language_model = LlamaModel(cfg.text_config, LlamaBlock)

    def forward(self, step: Step) -> Tensor:
        x = self.language_model.embed_tokens(step.token_ids)
        return self.language_model(step, F.replace_rows(x, self.visual(step), step.image_rows))


class Qwen2VLForConditionalGeneration(Module):
    Config: ClassVar[type[Qwen2VLConfig]] = Qwen2VLConfig
    weight_map: ClassVar[str] = "paddock.weights.qwen2_vl"

    def __init__(self, cfg: Qwen2VLConfig) -> None:
        self.model = Qwen2VLModel(cfg)
        self.lm_head = VocabHead(cfg.text_config.hidden_size, cfg.text_config.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)
