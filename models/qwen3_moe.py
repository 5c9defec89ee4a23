"""Qwen3-MoE: Qwen3 with experts, and none that every token meets."""

from collections.abc import Mapping
from typing import ClassVar

from paddock.graph import Module
from paddock.layers import MixtureOfExperts
from paddock.models.config import Size
from paddock.models.llama import LlamaConfig, LlamaForCausalLM
from paddock.models.qwen2_moe import Qwen2MoeBlock, Qwen2MoeConfig


class Qwen3MoeConfig(Qwen2MoeConfig):
    moe_intermediate_size: Size = 768
    num_experts: Size = 128
    num_experts_per_tok: Size = 8

    qk_norm: ClassVar[bool] = True
    synonyms: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def out_bias(self) -> bool:
        return self.attention_bias

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    def mixture(self) -> Module:
        return MixtureOfExperts(self.router(), self.experts())


class Qwen3MoeForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Qwen3MoeConfig
    Block = Qwen2MoeBlock
    weight_map: ClassVar[str] = "paddock.weights.qwen2_moe"
