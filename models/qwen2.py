"""Qwen2 and 2.5: Llama with a bias on q, k and v, and windows on the upper layers if asked."""

from typing import ClassVar

from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class Qwen2Config(LlamaConfig):
    max_position_embeddings: int = 32_768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None

    def window(self, layer: int) -> int | None:
        if not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer >= self.max_window_layers else None

    @property
    def qkv_bias(self) -> bool:
        return True  # not written in Qwen2's config.json


class Qwen2ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Qwen2Config
