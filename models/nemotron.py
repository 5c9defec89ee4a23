"""Nemotron and Minitron: LayerNorms stored less 1, squared relu, a rotary on half of each head."""

from __future__ import annotations

from typing import ClassVar

from paddock.graph import Module
from paddock.layers import MLP, LayerNorm
from paddock.models.config import ActivationName, Context, Eps
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class NemotronConfig(LlamaConfig):
    hidden_act: ActivationName = "relu2"
    max_position_embeddings: Context = 4096
    norm_eps: Eps = 1e-5
    partial_rotary_factor: float | None = None

    @property
    def rotary_part(self) -> float:
        return 0.5 if self.partial_rotary_factor is None else self.partial_rotary_factor

    def norm(self) -> Module:
        return LayerNorm(self.hidden_size, eps=self.norm_eps, exact=True)

    def mlp(self) -> Module:
        return MLP(
            self.hidden_size,
            self.intermediate_size,
            activation=self.hidden_act,
            bias=self.mlp_bias,
        )


class NemotronForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = NemotronConfig
    weight_map: ClassVar[str] = "paddock.weights.nemotron"
