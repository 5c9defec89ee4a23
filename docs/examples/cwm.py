"""CWM (Meta's Code World Model): Llama 3 in which three layers of four see a window."""

from typing import ClassVar, Self

from pydantic import model_validator

from paddock.models import registry
from paddock.models.config import Context, LayerTypes, Size, check_layers
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class CwmConfig(LlamaConfig):
    max_position_embeddings: Context = 131_072
    rms_norm_eps: float = 1e-5
    sliding_window: Size = 8192
    layer_types: LayerTypes | None = None

    default_theta: ClassVar[float] = 1_000_000.0

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        check_layers(self.layer_types, self.num_hidden_layers, self.sliding_window)
        return self

    def window(self, layer: int) -> int | None:
        if self.layer_types is None:
            return None if layer % 4 == 0 else self.sliding_window
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None


class CwmForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = CwmConfig


registry.register("CwmForCausalLM", __name__)
