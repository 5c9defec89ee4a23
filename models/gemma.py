"""Gemma: Llama with wide heads, embeddings times sqrt(hidden), and norms stored less 1."""

from typing import ClassVar, Literal

from paddock.graph import Module
from paddock.layers import GatedMLP, RMSNorm
from paddock.models.config import Context, Heads
from paddock.models.llama import LlamaConfig, LlamaForCausalLM

# "gelu" is what the first files say, and means its tanh approximation: that is what Gemma was
# trained with.
GemmaActivation = Literal["gelu", "gelu_pytorch_tanh"]


class GemmaConfig(LlamaConfig):
    num_key_value_heads: Heads
    head_dim: Heads = 256
    hidden_act: GemmaActivation = "gelu_pytorch_tanh"
    hidden_activation: GemmaActivation = "gelu_pytorch_tanh"
    max_position_embeddings: Context = 8192
    mlp_bias: Literal[False] = False
    tie_word_embeddings: bool = True

    @property
    def embedding_scale(self) -> float:
        return float(self.hidden_size**0.5)

    def norm(self) -> Module:
        return RMSNorm(self.hidden_size, eps=self.rms_norm_eps, exact=True)

    def mlp(self) -> Module:
        return GatedMLP(self.hidden_size, self.intermediate_size, activation="gelu_pytorch_tanh")


class GemmaForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = GemmaConfig
    weight_map: ClassVar[str] = "paddock.weights.gemma"
