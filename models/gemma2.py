"""Gemma 2: norms before and after, every other layer with a window, bounds on scores and logits."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Tensor
from paddock.layers import Step
from paddock.models.config import LayerTypes, Size, check_layers
from paddock.models.gemma import GemmaConfig
from paddock.models.llama import LlamaConfig, LlamaForCausalLM, attention


class Gemma2Config(GemmaConfig):
    query_pre_attn_scalar: float = Field(256, gt=0)
    sliding_window: Size | None = 4096
    layer_types: LayerTypes | None = None
    attn_logit_softcapping: float | None = Field(50.0, gt=0)
    final_logit_softcapping: float | None = Field(30.0, gt=0)

    ignored: ClassVar[frozenset[str]] = frozenset({"cache_implementation"})

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        check_layers(self.layer_types, self.num_hidden_layers, self.sliding_window)
        return self

    def is_local(self, layer: int) -> bool:
        """Whether the layer sees its window only."""
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return layer % 2 == 0

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.is_local(layer) else None

    @property
    def attention_scale(self) -> float:
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def score_cap(self) -> float | None:
        return self.attn_logit_softcapping

    @property
    def logit_cap(self) -> float | None:
        return self.final_logit_softcapping


class Gemma2Block(Module):
    def __init__(self, cfg: Gemma2Config, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = attention(cfg, layer)
        self.post_attention_layernorm = cfg.norm()
        self.pre_feedforward_layernorm = cfg.norm()
        self.mlp = cfg.mlp()
        self.post_feedforward_layernorm = cfg.norm()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.self_attn(self.input_layernorm(x), step)
        x = x + self.post_attention_layernorm(y)
        y = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(y)


class Gemma2ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Gemma2Config
    Block: ClassVar[type[Any]] = Gemma2Block
    weight_map: ClassVar[str] = "paddock.weights.gemma"
