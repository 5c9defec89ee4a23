"""ERNIE 4.5, dense: Llama whose neighbouring elements turn together, with one switch for biases."""

from typing import ClassVar

from paddock.graph import Module
from paddock.layers import GatedMLP
from paddock.models.config import Context, Heads
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class Ernie4_5Config(LlamaConfig):
    head_dim: Heads = 128
    max_position_embeddings: Context = 131_072
    rms_norm_eps: float = 1e-5
    use_bias: bool = False
    tie_word_embeddings: bool = True

    default_theta: ClassVar[float] = 500_000.0
    interleaved: ClassVar[bool] = True

    @property
    def qkv_bias(self) -> bool:
        return self.use_bias

    @property
    def out_bias(self) -> bool:
        return self.use_bias

    def mlp(self) -> Module:
        return GatedMLP(
            self.hidden_size,
            self.intermediate_size,
            activation=self.hidden_act,
            bias=self.use_bias,
        )


class Ernie4_5ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Ernie4_5Config
