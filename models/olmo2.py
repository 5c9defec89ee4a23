"""OLMo 2: Llama with norms behind attention and MLP, and one over all queries, and all keys."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from paddock.graph import Module, Tensor
from paddock.layers import JointRMSNorm, Step
from paddock.models.llama import LlamaConfig, LlamaForCausalLM, attention


class Olmo2Config(LlamaConfig):
    rms_norm_eps: float = 1e-5
    mlp_bias: Literal[False] = False

    def head_norm(self, heads: int) -> Module | None:
        return JointRMSNorm(heads, self.head_dim, eps=self.rms_norm_eps)


class Olmo2Block(Module):
    def __init__(self, cfg: LlamaConfig, layer: int) -> None:
        self.self_attn = attention(cfg, layer)
        self.post_attention_layernorm = cfg.norm()
        self.mlp = cfg.mlp()
        self.post_feedforward_layernorm = cfg.norm()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(x, step))
        return x + self.post_feedforward_layernorm(self.mlp(x))


class Olmo2ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Olmo2Config
    Block: ClassVar[type[Any]] = Olmo2Block
