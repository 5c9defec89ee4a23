"""GLM-4 0414 and GLM-Z1: GLM with norms behind attention and MLP as well."""

from __future__ import annotations

from typing import Any, ClassVar

from paddock.graph import Module, Tensor
from paddock.layers import Step
from paddock.models.glm import GlmConfig, GlmForCausalLM
from paddock.models.llama import attention


class Glm4Block(Module):
    def __init__(self, cfg: GlmConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = attention(cfg, layer)
        self.post_self_attn_layernorm = cfg.norm()
        self.post_attention_layernorm = cfg.norm()
        self.mlp = cfg.mlp()
        self.post_mlp_layernorm = cfg.norm()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.post_self_attn_layernorm(self.self_attn(self.input_layernorm(x), step))
        return x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))


class Glm4ForCausalLM(GlmForCausalLM):
    Block: ClassVar[type[Any]] = Glm4Block
