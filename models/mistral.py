"""Mistral: Llama whose layers see a sliding window."""

from typing import ClassVar

from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class MistralConfig(LlamaConfig):
    max_position_embeddings: int = 131_072
    sliding_window: int | None = None

    def window(self, layer: int) -> int | None:
        return self.sliding_window


class MistralForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = MistralConfig
