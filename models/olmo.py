"""OLMo: Llama with LayerNorms that have no weights, and a bound on queries, keys and values."""

from typing import ClassVar, Literal

from pydantic import Field

from paddock.graph import Module
from paddock.layers import LayerNorm
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class OlmoConfig(LlamaConfig):
    clip_qkv: float | None = Field(None, gt=0)
    mlp_bias: Literal[False] = False

    def norm(self) -> Module:
        return LayerNorm(self.hidden_size, eps=1e-5, scale=False)

    @property
    def clip(self) -> float | None:
        return self.clip_qkv


class OlmoForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = OlmoConfig
