"""Phi-1, 1.5 and 2: attention and MLP side by side behind one LayerNorm, biases everywhere."""

from __future__ import annotations

from typing import ClassVar, Literal

from paddock.graph import Module, Tensor
from paddock.layers import MLP, LayerNorm, Step, VocabHead
from paddock.models.config import ActivationName, Context, Eps
from paddock.models.llama import LlamaConfig, LlamaForCausalLM, LlamaModel, attention


class PhiConfig(LlamaConfig):
    hidden_act: ActivationName = "gelu_new"
    max_position_embeddings: Context = 2048
    layer_norm_eps: Eps = 1e-5
    partial_rotary_factor: float | None = None
    qk_layernorm: bool = False
    attention_bias: Literal[True] = True
    mlp_bias: Literal[True] = True

    @property
    def rotary_part(self) -> float:
        return 0.5 if self.partial_rotary_factor is None else self.partial_rotary_factor

    def norm(self) -> Module:
        return LayerNorm(self.hidden_size, eps=self.layer_norm_eps)

    def head_norm(self, heads: int) -> Module | None:
        return LayerNorm(self.head_dim, eps=self.layer_norm_eps) if self.qk_layernorm else None

    def mlp(self) -> Module:
        return MLP(self.hidden_size, self.intermediate_size, activation=self.hidden_act)


class PhiBlock(Module):
    def __init__(self, cfg: PhiConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = attention(cfg, layer)
        self.mlp = cfg.mlp()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.input_layernorm(x)
        return x + self.self_attn(y, step) + self.mlp(y)


class PhiForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = PhiConfig
    weight_map: ClassVar[str] = "paddock.weights.phi"

    def __init__(self, cfg: PhiConfig) -> None:
        self.model = LlamaModel(cfg, PhiBlock)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size, bias=True)
