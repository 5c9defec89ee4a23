"""Ministral: Mistral in which some layers may see everything."""

from typing import ClassVar, Self

from pydantic import model_validator

from paddock.models.config import LayerTypes, check_layers
from paddock.models.llama import LlamaConfig
from paddock.models.mistral import MistralConfig, MistralForCausalLM


class MinistralConfig(MistralConfig):
    layer_types: LayerTypes | None = None

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        check_layers(self.layer_types, self.num_hidden_layers, self.sliding_window)
        return self

    def window(self, layer: int) -> int | None:
        if self.layer_types is not None and self.layer_types[layer] == "full_attention":
            return None
        return self.sliding_window


class MinistralForCausalLM(MistralForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = MinistralConfig
