"""Granite 3: Llama with constant multipliers on embeddings, attention, residuals and logits."""

from typing import ClassVar

from pydantic import Field

from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class GraniteConfig(LlamaConfig):
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = Field(1.0, gt=0)

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def attention_scale(self) -> float:
        return self.attention_multiplier

    @property
    def residual_scale(self) -> float:
        return self.residual_multiplier

    @property
    def logit_scale(self) -> float:
        return 1 / self.logits_scaling


class GraniteForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = GraniteConfig
