"""GLM-4.5 and 4.6: grouped-query attention, and DeepSeek-V3's experts.

arxiv.org/abs/2508.06471.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from paddock.graph import Module, Tensor
from paddock.graph.ops import Route
from paddock.layers import Experts, GatedMLP, MixtureOfExperts, RMSNorm, Router, Step
from paddock.models.config import Context, Size
from paddock.models.deepseek_v3 import sigmoid_route
from paddock.models.llama import LlamaConfig, LlamaForCausalLM, attention


class Glm4MoeConfig(LlamaConfig):
    max_position_embeddings: Context = 131_072
    rms_norm_eps: float = Field(1e-5, ge=0, lt=1)
    partial_rotary_factor: float | None = Field(None, gt=0, le=1)
    use_qk_norm: bool = False
    first_k_dense_replace: int = Field(1, ge=0)
    moe_intermediate_size: Size = 1408
    n_routed_experts: Size = 128
    n_shared_experts: Size = 1
    num_experts_per_tok: Size = 8
    n_group: Size = 1
    topk_group: Size = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    default_rotary_part: ClassVar[float | None] = 0.5
    # The layer that predicts a second token is left unread.
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"num_mtp_layers", "num_nextn_predict_layers", "output_router_logits"}
    )
    synonyms: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}

    @property
    def rotary_part(self) -> float | None:
        return self.partial_rotary_factor or self.default_rotary_part

    @property
    def out_bias(self) -> bool:
        return False

    def head_norm(self, heads: int) -> Module | None:
        return RMSNorm(self.head_dim, eps=self.rms_norm_eps) if self.use_qk_norm else None

    def route(self) -> Route:
        return sigmoid_route(
            self.num_experts_per_tok,
            groups=self.n_group,
            kept_groups=self.topk_group,
            normalize=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
        )

    def feed_forward(self, layer: int) -> Module:
        """The first layers have one MLP, the others experts."""
        if layer < self.first_k_dense_replace:
            return self.mlp()
        router = Router(self.hidden_size, self.n_routed_experts, self.route(), correction=True)
        inner = self.moe_intermediate_size
        return MixtureOfExperts(
            router,
            Experts(self.n_routed_experts, self.hidden_size, inner, activation=self.hidden_act),
            shared=GatedMLP(
                self.hidden_size, inner * self.n_shared_experts, activation=self.hidden_act
            ),
        )


class Glm4MoeBlock(Module):
    def __init__(self, cfg: Glm4MoeConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = attention(cfg, layer)
        self.post_attention_layernorm = cfg.norm()
        self.mlp = cfg.feed_forward(layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))


class Glm4MoeForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Glm4MoeConfig
    Block = Glm4MoeBlock
    weight_map: ClassVar[str] = "paddock.weights.glm4_moe"
