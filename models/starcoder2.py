"""StarCoder2: Mistral with LayerNorm, a plain MLP, and biases."""

from __future__ import annotations

from typing import ClassVar, Literal

from paddock.graph import Module
from paddock.layers import MLP, LayerNorm
from paddock.models.config import ActivationName, Context, Eps, Heads, Size
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class Starcoder2Config(LlamaConfig):
    num_key_value_heads: Heads = 2
    hidden_act: ActivationName = "gelu_pytorch_tanh"
    max_position_embeddings: Context = 4096
    norm_epsilon: Eps = 1e-5
    sliding_window: Size | None = None
    use_bias: bool = True
    norm_type: Literal["layer_norm"] = "layer_norm"
    mlp_type: Literal["default"] = "default"
    tie_word_embeddings: bool = True

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"embedding_dropout", "residual_dropout", "activation_function"}
    )

    @property
    def qkv_bias(self) -> bool:
        return self.use_bias

    @property
    def out_bias(self) -> bool:
        return self.use_bias

    def window(self, layer: int) -> int | None:
        return self.sliding_window

    def norm(self) -> Module:
        return LayerNorm(self.hidden_size, eps=self.norm_epsilon)

    def mlp(self) -> Module:
        return MLP(
            self.hidden_size,
            self.intermediate_size,
            activation=self.hidden_act,
            bias=self.use_bias,
        )


class Starcoder2ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Starcoder2Config
    weight_map: ClassVar[str] = "paddock.weights.starcoder2"
