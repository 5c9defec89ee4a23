"""Qwen2 and 2.5: Llama with a bias on q, k and v, and windows on the upper layers if asked."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.models.config import Context, Heads, Size, check_layers
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class Qwen2Config(LlamaConfig):
    num_key_value_heads: Heads
    max_position_embeddings: Context = 32_768
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: int = Field(28, ge=0)
    layer_types: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    mlp_bias: Literal[False] = False

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        window = self.sliding_window if self.use_sliding_window else None
        check_layers(self.layer_types, self.num_hidden_layers, window)
        return self

    def window(self, layer: int) -> int | None:
        if not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer >= self.max_window_layers else None

    @property
    def qkv_bias(self) -> bool:
        return True  # not written in Qwen2's config.json

    @property
    def out_bias(self) -> bool:
        return False


class Qwen2ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Qwen2Config
