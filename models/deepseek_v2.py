"""DeepSeek-V2: latent attention, many small experts chosen in groups, and some for every token.

arxiv.org/abs/2405.04434.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import GraphError, Module, Tensor
from paddock.graph.ops import Route
from paddock.layers import (
    Experts,
    GatedMLP,
    LatentAttention,
    MixtureOfExperts,
    Rotary,
    Router,
    Step,
)
from paddock.layers.rotary import yarn_magnitude
from paddock.models.config import Heads, Size
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class DeepseekConfig(LlamaConfig):
    """What the versions have in common."""

    head_dim: Heads = 64  # qk_rope_head_dim again, where it is given
    q_lora_rank: Size | None = 1536
    kv_lora_rank: Size = 512
    qk_nope_head_dim: Size = 128
    qk_rope_head_dim: Size = 64
    v_head_dim: Size = 128
    first_k_dense_replace: int = Field(0, ge=0)
    moe_intermediate_size: Size = 1407
    moe_layer_freq: Literal[1] = 1
    n_routed_experts: Size = 64
    n_shared_experts: Size = 2
    num_experts_per_tok: Size = 6
    n_group: Size | None = None
    topk_group: Size | None = None
    topk_method: str | None = "greedy"
    routed_scaling_factor: float = 1.0

    correction: ClassVar[bool] = False  # a bias on the scores, for the choice
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            *("aux_loss_alpha", "ep_size", "output_router_logits", "seq_aux"),  # training
            "qk_head_dim",  # the two parts' sum
        }
    )
    synonyms: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        try:
            Rotary(self.qk_rope_head_dim, self.scaling())
        except GraphError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def attention_scale(self) -> float:
        """YaRN's magnitude counts twice, for queries and for keys, the straight parts too."""
        scaling = self.scaling()
        scale = float((self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5)
        if scaling.rope_type == "default" or not scaling.mscale_all_dim:
            return scale
        return scale * yarn_magnitude(scaling.factor or 1.0, scaling.mscale_all_dim) ** 2

    @property
    def interleaves(self) -> bool:
        """Whether the pairs that turn are neighbours."""
        return True

    def route(self) -> Route:
        raise NotImplementedError

    def attention(self, layer: int) -> Module:
        return LatentAttention(
            self.hidden_size,
            heads=self.num_attention_heads,
            latent=self.kv_lora_rank,
            query_latent=self.q_lora_rank,
            key_dim=self.qk_nope_head_dim,
            turned_dim=self.qk_rope_head_dim,
            value_dim=self.v_head_dim,
            rotary=Rotary(self.qk_rope_head_dim, self.scaling(), interleaved=self.interleaves),
            scale=self.attention_scale,
            norm_eps=1e-6,  # whatever rms_norm_eps says
            bias=self.attention_bias,
        )

    def feed_forward(self, layer: int) -> Module:
        """The first layers have one MLP, the others experts."""
        if layer < self.first_k_dense_replace:
            return self.mlp()
        return MixtureOfExperts(
            Router(
                self.hidden_size,
                self.n_routed_experts,
                self.route(),
                correction=self.correction,
            ),
            Experts(
                self.n_routed_experts,
                self.hidden_size,
                self.moe_intermediate_size,
                activation=self.hidden_act,
            ),
            shared=GatedMLP(
                self.hidden_size,
                self.moe_intermediate_size * self.n_shared_experts,
                activation=self.hidden_act,
                bias=self.mlp_bias,
            ),
        )


class DeepseekV2Config(DeepseekConfig):
    norm_topk_prob: Literal[False] = False
    scoring_func: Literal["softmax"] = "softmax"

    def route(self) -> Route:
        grouped = self.topk_method == "group_limited_greedy"
        return Route(
            self.num_experts_per_tok,
            groups=(self.n_group or 1) if grouped else 1,
            kept_groups=(self.topk_group or 1) if grouped else 1,
            scale=self.routed_scaling_factor,
        )


class DeepseekBlock(Module):
    def __init__(self, cfg: DeepseekConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = cfg.attention(layer)
        self.post_attention_layernorm = cfg.norm()
        self.mlp = cfg.feed_forward(layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))


class DeepseekV2ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = DeepseekV2Config
    Block = DeepseekBlock
    weight_map: ClassVar[str] = "paddock.weights.deepseek"
