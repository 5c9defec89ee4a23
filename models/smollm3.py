"""SmolLM3: Llama that leaves positions out of every fourth layer.

The idea (NoPE): Yang et al. 2025, arxiv.org/abs/2501.18795.
"""

from typing import ClassVar

from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class SmolLM3Config(LlamaConfig):
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = True
    no_rope_layers: tuple[int, ...] | None = None  # 1 where a layer HAS rotary positions
    no_rope_layer_interval: int = 4
    use_sliding_window: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None

    default_theta: ClassVar[float] = 2_000_000.0

    def has_rotary(self, layer: int) -> bool:
        if self.no_rope_layers is not None:
            return bool(self.no_rope_layers[layer])
        return (layer + 1) % self.no_rope_layer_interval != 0

    def window(self, layer: int) -> int | None:
        if not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return None if self.has_rotary(layer) else self.sliding_window


class SmolLM3ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = SmolLM3Config
