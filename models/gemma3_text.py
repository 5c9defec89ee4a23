"""Gemma 3, text: Gemma 2 with norms on queries and keys, five local layers to a global one, each
kind with rotary frequencies of its own, and no bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module
from paddock.layers import RMSNorm, Rotary, RotaryScaling
from paddock.models.config import Context, Size, rotary_of_kind, rotary_scaling
from paddock.models.gemma2 import Gemma2Config, Gemma2ForCausalLM
from paddock.models.llama import LlamaConfig


class Gemma3TextConfig(Gemma2Config):
    max_position_embeddings: Context = 131_072
    rope_local_base_freq: float | None = None
    sliding_window_pattern: Size = 6
    attn_logit_softcapping: float | None = Field(None, gt=0)
    final_logit_softcapping: float | None = Field(None, gt=0)

    default_theta: ClassVar[float] = 1_000_000.0
    synonyms: ClassVar[Mapping[str, str]] = {"_sliding_window_pattern": "sliding_window_pattern"}

    @model_validator(mode="after")
    def _turns_locally(self) -> Self:
        self.rotary(0)
        return self

    def is_local(self, layer: int) -> bool:
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return (layer + 1) % self.sliding_window_pattern != 0

    def head_norm(self, heads: int) -> Module | None:
        return RMSNorm(self.head_dim, eps=self.rms_norm_eps, exact=True)

    def scaling(self) -> RotaryScaling:
        return rotary_scaling(
            rotary_of_kind(self.rope_parameters, "full_attention"),
            self.rope_scaling,
            theta=self.rope_theta,
            default_theta=self.default_theta,
            max_position_embeddings=self.max_position_embeddings,
        )

    def rotary(self, layer: int) -> Rotary | None:
        if not self.is_local(layer):
            return Rotary(self.head_dim, self.scaling())
        local = rotary_of_kind(self.rope_parameters, "sliding_attention")
        scaling = rotary_scaling(
            local,
            None,
            theta=self.rope_local_base_freq,
            default_theta=10_000.0,
            max_position_embeddings=self.max_position_embeddings,
        )
        return Rotary(self.head_dim, scaling)


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Gemma3TextConfig
