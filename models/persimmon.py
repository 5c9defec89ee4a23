"""Persimmon: LayerNorm, squared relu, norms on queries and keys, half of each head turned."""

from __future__ import annotations

from typing import ClassVar, Literal

from paddock.graph import Module
from paddock.layers import MLP, LayerNorm
from paddock.models.config import ActivationName, Context, Eps
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class PersimmonConfig(LlamaConfig):
    hidden_act: ActivationName = "relu2"
    max_position_embeddings: Context = 16_384
    layer_norm_eps: Eps = 1e-5
    partial_rotary_factor: float | None = None
    qk_layernorm: bool = True
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


class PersimmonForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = PersimmonConfig
    weight_map: ClassVar[str] = "paddock.weights.persimmon"
