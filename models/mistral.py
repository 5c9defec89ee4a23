"""Mistral: Llama whose layers see a sliding window."""

from typing import ClassVar, Literal

from paddock.models.config import Context, Heads, Size
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class MistralConfig(LlamaConfig):
    num_key_value_heads: Heads
    max_position_embeddings: Context = 131_072
    sliding_window: Size | None = 4096  # null for none; files of the first Mistral leave it out
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    def window(self, layer: int) -> int | None:
        return self.sliding_window


class MistralForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = MistralConfig
