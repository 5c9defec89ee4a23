"""SmolLM3: Llama that leaves positions out of every fourth layer.

The idea (NoPE): Yang et al. 2025, arxiv.org/abs/2501.18795.
"""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from paddock.models.config import Context, Heads, Size, check_layers
from paddock.models.llama import LlamaConfig, LlamaForCausalLM

# In `no_rope_layers`, 1 is for a layer that HAS rotary positions.
Rotated = Annotated[int, Field(ge=0, le=1)]


class SmolLM3Config(LlamaConfig):
    num_key_value_heads: Heads
    max_position_embeddings: Context = 32_768
    tie_word_embeddings: bool = True
    no_rope_layers: Annotated[tuple[Rotated, ...], Field(strict=False)] | None = None
    no_rope_layer_interval: Size = 4
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    layer_types: Annotated[tuple[str, ...], Field(strict=False)] | None = None

    default_theta: ClassVar[float] = 2_000_000.0
    ignored: ClassVar[frozenset[str]] = frozenset({"max_window_layers"})  # Qwen2's; not read here

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        listed = self.no_rope_layers
        if listed is not None and len(listed) < self.num_hidden_layers:
            raise ValueError(
                f"no_rope_layers has {len(listed)} entries for {self.num_hidden_layers} layers"
            )
        window = self.sliding_window if self.use_sliding_window else None
        check_layers(self.layer_types, self.num_hidden_layers, window)
        return self

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
