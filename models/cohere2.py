"""Command R7B: Cohere with windows, and no positions in the layers that see everything."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from paddock.models.cohere import CohereConfig, CohereForCausalLM
from paddock.models.config import LayerTypes, Size, check_layers
from paddock.models.llama import LlamaConfig


class Cohere2Config(CohereConfig):
    sliding_window: Size | None = 4096
    sliding_window_pattern: Size = 4
    layer_types: LayerTypes | None = None
    use_qk_norm: Literal[False] = False

    default_theta: ClassVar[float] = 10_000.0
    ignored: ClassVar[frozenset[str]] = frozenset(
        (
            "cache_implementation",
            "layer_switch",  # sliding_window_pattern again
            "order_of_interleaved_layers",
            "position_embedding_type",
            "rotary_pct",
            "use_embedding_sharing",  # tie_word_embeddings again
            "use_gated_activation",
            "use_parallel_block",
            "use_parallel_embedding",
        )
    )

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        check_layers(self.layer_types, self.num_hidden_layers, self.sliding_window)
        return self

    def has_rotary(self, layer: int) -> bool:
        return self.window(layer) is not None

    def window(self, layer: int) -> int | None:
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if (layer + 1) % self.sliding_window_pattern else None


class Cohere2ForCausalLM(CohereForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Cohere2Config
