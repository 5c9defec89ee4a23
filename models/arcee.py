"""Arcee (AFM): Llama with a plain MLP of squared relu."""

from typing import ClassVar

from paddock.graph import Module
from paddock.layers import MLP
from paddock.models.config import ActivationName, Context
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class ArceeConfig(LlamaConfig):
    hidden_act: ActivationName = "relu2"
    max_position_embeddings: Context = 4096
    rms_norm_eps: float = 1e-5

    def mlp(self) -> Module:
        return MLP(
            self.hidden_size,
            self.intermediate_size,
            activation=self.hidden_act,
            bias=self.mlp_bias,
        )


class ArceeForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = ArceeConfig
