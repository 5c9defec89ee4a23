"""Gemma 3: the text model beside a SigLIP tower, whose windows of patches are means.

Gemma Team 2025, arxiv.org/abs/2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Parameter, Tensor
from paddock.graph import ops as F
from paddock.layers import RMSNorm, Step, VocabHead
from paddock.models.config import Context, Heads, Size
from paddock.models.gemma2 import Gemma2Block
from paddock.models.gemma3_text import Gemma3TextConfig
from paddock.models.images import ImageForm
from paddock.models.llama import LlamaModel
from paddock.models.siglip_vision_model import SiglipVisionConfig, SiglipVisionModel
from paddock.models.vision_language import Part, VisionLanguageConfig


class Gemma3PlainTextConfig(Gemma3TextConfig):
    """With the defaults that files of the whole model rely on."""

    num_attention_heads: Heads = 8
    num_key_value_heads: Heads = 4
    head_dim: Heads = 256
    vocab_size: Size = 262_208
    max_position_embeddings: Context = 131_072


class Gemma3SeeingTextConfig(Gemma3PlainTextConfig):
    images: ClassVar[bool] = True


class Gemma3Config(VisionLanguageConfig):
    text_config: Gemma3PlainTextConfig
    vision_config: SiglipVisionConfig | None = None
    mm_tokens_per_image: int = Field(256, gt=0, le=2**20)
    image_token_id: int = Field(262_144, ge=0)
    tie_word_embeddings: bool = True

    text_parts: ClassVar[Mapping[str, Part]] = {
        "gemma3_text": Part(
            Gemma2Block,
            Gemma3SeeingTextConfig,
            {
                "hidden_size": 2304,
                "intermediate_size": 9216,
                "num_hidden_layers": 26,
            },
        )
    }
    vision_parts: ClassVar[Mapping[str, Part]] = {
        "siglip_vision_model": Part(SiglipVisionModel, SiglipVisionConfig, {})
    }
    synonyms: ClassVar[Mapping[str, str]] = {"image_token_index": "image_token_id"}
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"boi_token_index", "eoi_token_index"}  # of which the tokenizer knows the text
    )

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        vision = self.vision_config
        if vision is None:
            return self
        side, tokens = isqrt(vision.patches), isqrt(self.mm_tokens_per_image)
        if tokens**2 != self.mm_tokens_per_image or side % tokens:
            raise ValueError(
                f"mm_tokens_per_image {self.mm_tokens_per_image} are no square of windows of"
                f" {side} x {side} patches"
            )
        window = self.text_config.sliding_window
        if window is not None and window < self.mm_tokens_per_image:
            raise ValueError(
                f"text_config.sliding_window {window} is less than the {self.mm_tokens_per_image}"
                " tokens of an image, which see each other"
            )
        return self

    def blind(self) -> Self:
        text = Gemma3PlainTextConfig.model_validate(self.text_config.model_dump())
        return self.model_copy(update={"text_config": text, "vision_config": None})

    @property
    def window(self) -> int:
        """Patches of which a token's mean is taken, on each side."""
        assert self.vision_config is not None
        return isqrt(self.vision_config.patches) // isqrt(self.mm_tokens_per_image)

    @property
    def image_form(self) -> ImageForm | None:
        vision = self.vision_config
        if vision is None:
            return None
        return ImageForm(
            token_id=self.image_token_id,
            patch_size=vision.patch_size,
            channels=vision.num_channels,
            side=vision.image_size,
            window=self.window,
            whole=True,
            marker="<start_of_image>",
            before="\n\n<start_of_image>",
            after="<end_of_image>\n\n",
        )


class Gemma3MultiModalProjector(Module):
    def __init__(self, cfg: Gemma3Config, vision: SiglipVisionConfig) -> None:
        self.mm_input_projection_weight = Parameter(
            (cfg.text_config.hidden_size, vision.hidden_size)
        )
        self.mm_soft_emb_norm = RMSNorm(vision.hidden_size, eps=vision.layer_norm_eps, exact=True)
        self.patches = cfg.window**2

    def forward(self, x: Tensor) -> Tensor:
        """x: [patches, vision hidden], windows one after another -> [windows, hidden]."""
        size = x.type.size(1)
        first, *others = F.split(F.fold_rows(x, self.patches), *(size,) * self.patches)
        for other in others:
            first = first + other
        mean = self.mm_soft_emb_norm(first * (1 / self.patches))
        return F.linear(mean, self.mm_input_projection_weight.tensor)


class Gemma3Model(Module):
    def __init__(self, cfg: Gemma3Config) -> None:
        if cfg.vision_config is not None:
            self.vision_tower = SiglipVisionModel(cfg.vision_config)
            self.multi_modal_projector = Gemma3MultiModalProjector(cfg, cfg.vision_config)
        self.language_model = LlamaModel(cfg.text_config, Gemma2Block)
        self.sees = cfg.vision_config is not None

    def forward(self, step: Step) -> Tensor:
        x = self.language_model.embed_tokens(step.token_ids)
        if self.sees:
            states = self.vision_tower(step)
            images = self.multi_modal_projector(self.vision_tower.post_layernorm(states[-1]))
            x = F.replace_rows(x, images, step.image_rows)
        return self.language_model(step, x)


class Gemma3ForConditionalGeneration(Module):
    """Without a vision_config it is the text model alone."""

    Config: ClassVar[type[Gemma3Config]] = Gemma3Config
    weight_map: ClassVar[str] = "paddock.weights.gemma3"

    def __init__(self, cfg: Gemma3Config) -> None:
        text = cfg.text_config
        self.model = Gemma3Model(cfg)
        self.lm_head = VocabHead(text.hidden_size, text.vocab_size, soft_cap=text.logit_cap)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)
