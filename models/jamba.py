"""Jamba: Mamba in most layers, attention without positions in a few, experts in every other.

Lieber et al. 2024, arxiv.org/abs/2403.19887.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import Module
from paddock.graph.ops import Route
from paddock.layers import Experts, MambaMixer, MixtureOfExperts, RMSNorm, Router
from paddock.models.bamba import BambaForCausalLM
from paddock.models.config import Context, Heads, Size
from paddock.models.llama import LlamaConfig


class JambaConfig(LlamaConfig):
    num_key_value_heads: Heads = 8
    max_position_embeddings: Context = 262_144
    num_experts: Size = 16
    num_experts_per_tok: Size = 2
    expert_layer_period: Size = 2
    expert_layer_offset: int = Field(1, ge=0)
    attn_layer_period: Size = 8
    attn_layer_offset: int = Field(4, ge=0)
    mamba_d_state: Size = 16
    mamba_d_conv: int = Field(4, gt=0, le=64)
    mamba_expand: int = Field(2, gt=0, le=64)
    mamba_dt_rank: Size | Literal["auto"] = "auto"
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    sliding_window: Literal[None] = None

    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            *("layer_types", "layers_block_type", "layers_num_experts", "mamba_inner_layernorms"),
            *("num_logits_to_keep", "output_router_logits", "use_associative_scan"),
            *("use_mamba_kernels", "use_mambapy"),
        }
    )

    @model_validator(mode="after")
    def _offsets_fit(self) -> Self:
        for kind in ("attn", "expert"):
            offset, period = (getattr(self, f"{kind}_layer_{n}") for n in ("offset", "period"))
            if offset >= period:
                raise ValueError(f"{kind}_layer_offset {offset} is not below the period {period}")
        return self

    def has_rotary(self, layer: int) -> bool:
        return False

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention, and no state space."""
        return layer % self.attn_layer_period == self.attn_layer_offset

    def state_space(self) -> Module:
        rank = self.mamba_dt_rank
        rank = -(-self.hidden_size // 16) if rank == "auto" else rank
        dt_norm, b_norm, c_norm = (
            RMSNorm(size, eps=self.rms_norm_eps)
            for size in (rank, self.mamba_d_state, self.mamba_d_state)
        )
        return MambaMixer(
            self.hidden_size,
            inner=self.mamba_expand * self.hidden_size,
            state=self.mamba_d_state,
            rank=rank,
            width=self.mamba_d_conv,
            activation=self.hidden_act,
            bias=self.mamba_proj_bias,
            conv_bias=self.mamba_conv_bias,
            dt_norm=dt_norm,
            b_norm=b_norm,
            c_norm=c_norm,
        )

    def feed_forward(self, layer: int) -> Module:
        sparse = layer % self.expert_layer_period == self.expert_layer_offset
        if self.num_experts == 1 or not sparse:
            return self.mlp()
        return MixtureOfExperts(
            Router(self.hidden_size, self.num_experts, Route(self.num_experts_per_tok)),
            Experts(
                self.num_experts,
                self.hidden_size,
                self.intermediate_size,
                activation=self.hidden_act,
            ),
        )


class JambaForCausalLM(BambaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = JambaConfig
