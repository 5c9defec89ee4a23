"""OLMo 3: OLMo 2 with windows on three layers of four, whose rotary is never scaled."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from paddock.layers import Rotary, RotaryScaling
from paddock.models.config import (
    LayerTypes,
    Size,
    check_layers,
    rotary_of_kind,
    rotary_scaling,
)
from paddock.models.llama import LlamaConfig
from paddock.models.olmo2 import Olmo2Config, Olmo2ForCausalLM


class Olmo3Config(Olmo2Config):
    sliding_window: Size | None = 4096
    layer_types: LayerTypes | None = None

    default_theta: ClassVar[float] = 500_000.0

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        check_layers(self.layer_types, self.num_hidden_layers, self.sliding_window)
        self._local()
        return self

    def is_local(self, layer: int) -> bool:
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return (layer + 1) % 4 != 0

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.is_local(layer) else None

    def scaling(self) -> RotaryScaling:
        return rotary_scaling(
            rotary_of_kind(self.rope_parameters, "full_attention"),
            self.rope_scaling,
            theta=self.rope_theta,
            default_theta=self.default_theta,
            max_position_embeddings=self.max_position_embeddings,
        )

    def _local(self) -> RotaryScaling:
        return rotary_scaling(
            rotary_of_kind(self.rope_parameters, "sliding_attention"),
            None,
            theta=self.rope_theta,
            default_theta=self.scaling().rope_theta,
            max_position_embeddings=self.max_position_embeddings,
        )

    def rotary(self, layer: int) -> Rotary | None:
        return Rotary(self.head_dim, self._local() if self.is_local(layer) else self.scaling())


class Olmo3ForCausalLM(Olmo2ForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Olmo3Config
