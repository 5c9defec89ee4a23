"""EXAONE 4: OLMo 2's order of norms, one on each head of q and k, and, with windows, no positions
in the layers that see everything."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from paddock.models.config import LayerTypes, Size, check_layers
from paddock.models.llama import LlamaConfig, LlamaForCausalLM
from paddock.models.olmo2 import Olmo2Block


class Exaone4Config(LlamaConfig):
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = 4096
    sliding_window_pattern: int | str | None = 4  # "LLLG": three local layers to a global one
    layer_types: LayerTypes | None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    qk_norm: ClassVar[bool] = True

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        check_layers(self.layer_types, self.num_hidden_layers, self.sliding_window)
        if self.sliding_window is not None and self.layer_types is None and self._period() < 1:
            raise ValueError(f"sliding_window_pattern is {self.sliding_window_pattern!r}")
        return self

    def _period(self) -> int:
        pattern = self.sliding_window_pattern
        return len(pattern) if isinstance(pattern, str) else pattern or 0

    def is_local(self, layer: int) -> bool:
        if self.sliding_window is None:
            return False
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return (layer + 1) % self._period() != 0

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.is_local(layer) else None

    def has_rotary(self, layer: int) -> bool:
        return self.sliding_window is None or self.is_local(layer)


class Exaone4ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Exaone4Config
    Block: ClassVar[type[Any]] = Olmo2Block
