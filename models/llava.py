"""LLaVA: a text model that reads, in the places of some tokens, what a tower makes of an image.

Liu et al. 2023, arxiv.org/abs/2310.03744.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Tensor
from paddock.graph import ops as F
from paddock.layers import Linear, Step, VocabHead, activate
from paddock.models.clip_vision_model import ClipVisionConfig, CLIPVisionModel
from paddock.models.config import ActivationName
from paddock.models.images import ImageForm
from paddock.models.llama import LlamaConfig, LlamaForCausalLM, LlamaModel
from paddock.models.mistral import MistralForCausalLM
from paddock.models.qwen2 import Qwen2ForCausalLM
from paddock.models.siglip_vision_model import SiglipVisionConfig, SiglipVisionModel
from paddock.models.vision_language import Part, VisionLanguageConfig

_SIZES = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


class LlavaConfig(VisionLanguageConfig):
    text_config: LlamaConfig
    vision_config: ClipVisionConfig
    image_token_id: int = Field(32000, ge=0)
    projector_hidden_act: ActivationName = "gelu"
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    vision_feature_layer: int | list[int] = -2
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool = False

    text_parts: ClassVar[Mapping[str, Part]] = {
        "llama": Part(LlamaForCausalLM, LlamaForCausalLM.Config, _SIZES),
        "mistral": Part(
            MistralForCausalLM,
            MistralForCausalLM.Config,
            _SIZES | {"intermediate_size": 14336, "num_key_value_heads": 8},
        ),
        "qwen2": Part(
            Qwen2ForCausalLM,
            Qwen2ForCausalLM.Config,
            _SIZES | {"vocab_size": 151_936, "intermediate_size": 22016, "num_key_value_heads": 32},
        ),
    }
    vision_parts: ClassVar[Mapping[str, Part]] = {
        "clip_vision_model": Part(CLIPVisionModel, ClipVisionConfig, {}),
        "siglip_vision_model": Part(SiglipVisionModel, SiglipVisionConfig, {}),
    }
    synonyms: ClassVar[Mapping[str, str]] = {"image_token_index": "image_token_id"}
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"ignore_index", "image_seq_length", "vocab_size"}  # of training, and what sizes say
    )

    @model_validator(mode="after")
    def _reads_layers_there_are(self) -> Self:
        layers = self.vision_config.num_hidden_layers
        for layer in self.feature_layers:
            if not -layers - 1 <= layer <= layers:
                raise ValueError(
                    f"vision_feature_layer {layer}: the tower has {layers} layers, so that one of"
                    f" {-layers - 1} to {layers} can be read"
                )
        return self

    @property
    def feature_layers(self) -> list[int]:
        """Behind which layers of the tower its states are read; 0 is before the first."""
        found = self.vision_feature_layer
        return [found] if isinstance(found, int) else found

    @property
    def image_form(self) -> ImageForm:
        vision = self.vision_config
        return ImageForm(
            token_id=self.image_token_id,
            patch_size=vision.patch_size,
            channels=vision.num_channels,
            class_token=vision.class_token,
            # Without CLIP's class token; SigLIP's first patch, too, where a file says "default".
            first_row=1 if self.vision_feature_select_strategy == "default" else 0,
            side=vision.image_size,
        )


class LlavaMultiModalProjector(Module):
    def __init__(self, cfg: LlavaConfig) -> None:
        inner, hidden = cfg.vision_config.hidden_size, cfg.text_config.hidden_size
        bias = cfg.multimodal_projector_bias
        self.linear_1 = Linear(inner * len(cfg.feature_layers), hidden, bias=bias)
        self.linear_2 = Linear(hidden, hidden, bias=bias)
        self.activation = cfg.projector_hidden_act

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(activate(self.linear_1(x), self.activation))


class LlavaModel(Module):
    def __init__(self, cfg: LlavaConfig) -> None:
        self.vision_tower = cfg.vision_model()
        self.multi_modal_projector = LlavaMultiModalProjector(cfg)
        self.language_model = LlamaModel(cfg.text_config, cfg.text_model.Block)
        self.feature_layers = cfg.feature_layers

    def forward(self, step: Step) -> Tensor:
        states = self.vision_tower(step)
        images = self.multi_modal_projector(F.concat(*(states[i] for i in self.feature_layers)))
        x = self.language_model.embed_tokens(step.token_ids)
        return self.language_model(step, F.replace_rows(x, images, step.image_rows))


class LlavaForConditionalGeneration(Module):
    Config: ClassVar[type[LlavaConfig]] = LlavaConfig
    weight_map: ClassVar[str] = "paddock.weights.llava"

    def __init__(self, cfg: LlavaConfig) -> None:
        self.model = LlavaModel(cfg)
        self.lm_head = VocabHead(cfg.text_config.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)
