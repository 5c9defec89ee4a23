"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with many small experts, and one that every token meets."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from paddock.graph import Module
from paddock.graph.ops import Route
from paddock.layers import Experts, GatedMLP, MixtureOfExperts, Router
from paddock.models.config import Size
from paddock.models.llama import LlamaBlock, LlamaConfig, LlamaForCausalLM
from paddock.models.qwen2 import Qwen2Config


class Qwen2MoeConfig(Qwen2Config):
    sliding_window: int | None = Field(4096, ge=0, le=2**22)  # 0 is written for none
    decoder_sparse_step: Size = 1
    mlp_only_layers: Annotated[tuple[int, ...], Field(strict=False)] | None = None
    moe_intermediate_size: Size = 1408
    shared_expert_intermediate_size: Size = 5632
    num_experts: Size = 60
    num_experts_per_tok: Size = 4
    norm_topk_prob: bool = False
    biased: bool = True

    ignored: ClassVar[frozenset[str]] = frozenset({"output_router_logits"})
    synonyms: ClassVar[Mapping[str, str]] = {"qkv_bias": "biased"}

    @property
    def qkv_bias(self) -> bool:
        return self.biased

    def window(self, layer: int) -> int | None:
        """Unlike Qwen2's, the layers below `max_window_layers` have windows, every other one."""
        if not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer % 2 == 0 and layer < self.max_window_layers else None

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        if layer in (self.mlp_only_layers or ()):
            return False
        return (layer + 1) % self.decoder_sparse_step == 0

    def router(self) -> Router:
        route = Route(self.num_experts_per_tok, normalize=self.norm_topk_prob)
        return Router(self.hidden_size, self.num_experts, route)

    def experts(self) -> Experts:
        return Experts(
            self.num_experts,
            self.hidden_size,
            self.moe_intermediate_size,
            activation=self.hidden_act,
        )

    def mixture(self) -> Module:
        """What stands in the place of the MLP."""
        return self.mixture_with_shared()

    def mixture_with_shared(self) -> Module:
        """Experts, and beside them an MLP that a gate weighs."""
        shared = GatedMLP(
            self.hidden_size, self.shared_expert_intermediate_size, activation=self.hidden_act
        )
        return MixtureOfExperts(
            self.router(), self.experts(), shared=shared, shared_gate=self.hidden_size
        )


class Qwen2MoeBlock(LlamaBlock):
    def __init__(self, cfg: Qwen2MoeConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        if cfg.is_sparse(layer):
            self.mlp = cfg.mixture()


class Qwen2MoeForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Qwen2MoeConfig
    Block = Qwen2MoeBlock
    weight_map: ClassVar[str] = "paddock.weights.qwen2_moe"
