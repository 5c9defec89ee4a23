"""Qwen3-Next: gated delta nets, gated attention in every fourth layer, and many small experts.

qwenlm.github.io/blog/qwen3_next; both gates: arxiv.org/abs/2412.06464, arxiv.org/abs/2505.06708.
"""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Cache, Module, Parts, Shard, Tensor
from paddock.graph import ops as F
from paddock.layers import (
    ColumnLinear,
    GatedDeltaNet,
    RMSNorm,
    RowLinear,
    Step,
)
from paddock.models.config import Heads, LayerTypes, Size
from paddock.models.llama import LlamaConfig, LlamaForCausalLM
from paddock.models.qwen3_moe import Qwen3MoeConfig


class Qwen3NextConfig(Qwen3MoeConfig):
    head_dim: Heads = 256
    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    num_experts: Size = 512
    num_experts_per_tok: Size = 10
    norm_topk_prob: bool = True
    partial_rotary_factor: float | None = Field(None, gt=0, le=1)
    full_attention_interval: Size = 4
    layer_types: LayerTypes | None = None
    linear_conv_kernel_dim: int = Field(4, gt=0, le=64)
    linear_key_head_dim: Size = 128
    linear_value_head_dim: Size = 128
    linear_num_key_heads: Heads = 16
    linear_num_value_heads: Heads = 32

    default_rotary_part: ClassVar[float | None] = 0.25

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        kinds = self.layer_types or ()
        if self.layer_types is not None and len(kinds) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(kinds)} entries for {self.num_hidden_layers} layers"
            )
        odd = next((k for k in kinds if k not in ("linear_attention", "full_attention")), None)
        if odd is not None:
            raise ValueError(
                f"layer_types: {odd[:80]!r} is neither 'linear_attention' nor 'full_attention'"
            )
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ValueError(
                f"linear_num_value_heads {self.linear_num_value_heads} is not a multiple of"
                f" linear_num_key_heads {self.linear_num_key_heads}"
            )
        return self

    @property
    def rotary_part(self) -> float | None:
        return self.partial_rotary_factor or self.default_rotary_part

    def is_linear(self, layer: int) -> bool:
        """Whether a layer has a delta net, and no attention."""
        if self.layer_types is not None:
            return self.layer_types[layer] == "linear_attention"
        return (layer + 1) % self.full_attention_interval != 0

    def norm(self) -> Module:
        return RMSNorm(self.hidden_size, eps=self.rms_norm_eps, exact=True)

    def mixture(self) -> Module:
        return self.mixture_with_shared()


class GatedAttention(Module):
    """Grouped-query attention whose result is gated, element by element, by another product."""

    def __init__(self, cfg: Qwen3NextConfig) -> None:
        heads, kv_heads, size = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        queries, keys = {"q": heads * size, "gate": heads * size}, kv_heads * size
        bias, hidden = cfg.attention_bias, cfg.hidden_size
        self.q_proj = ColumnLinear(hidden, queries, unit=size, bias=bias)
        self.kv_proj = ColumnLinear(
            hidden, {"k": keys, "v": keys}, unit=size, repeat=True, bias=bias
        )
        self.q_norm = RMSNorm(size, eps=cfg.rms_norm_eps, exact=True)
        self.k_norm = RMSNorm(size, eps=cfg.rms_norm_eps, exact=True)
        self.rotary = cfg.rotary(0)
        self.o_proj = RowLinear(heads * size, hidden, unit=size, bias=bias)
        by_head = Shard(0, Parts({"heads": kv_heads}, repeat=True))
        self.key_cache = Cache((kv_heads, size), by_head)
        self.value_cache = Cache((kv_heads, size), by_head)
        self.head_dim = size

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        q, gate = self.q_proj(x)
        k, v = self.kv_proj(x)
        q, k, v = (F.reshape(y, y.type.size(1) // self.head_dim, self.head_dim) for y in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, k, step)
        y = F.attention(
            q,
            k,
            v,
            caches=(self.key_cache.tensor, self.value_cache.tensor),
            sequence_starts=step.sequence_starts,
            past_lengths=step.past_lengths,
            block_table=step.block_table,
            block_starts=step.block_starts,
            scale=float(self.head_dim**-0.5),
        )
        y = F.reshape(y, gate.type.size(1)) * F.activation(gate, "sigmoid")
        return self.o_proj(y)


class Qwen3NextBlock(Module):
    def __init__(self, cfg: Qwen3NextConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.is_linear = cfg.is_linear(layer)
        if self.is_linear:
            self.linear_attn = GatedDeltaNet(
                cfg.hidden_size,
                key_heads=cfg.linear_num_key_heads,
                value_heads=cfg.linear_num_value_heads,
                key_dim=cfg.linear_key_head_dim,
                value_dim=cfg.linear_value_head_dim,
                width=cfg.linear_conv_kernel_dim,
                norm_eps=cfg.rms_norm_eps,
            )
        else:
            self.self_attn = GatedAttention(cfg)
        self.post_attention_layernorm = cfg.norm()
        self.mlp = cfg.mixture() if cfg.is_sparse(layer) else cfg.mlp()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        mixer = self.linear_attn if self.is_linear else self.self_attn
        x = x + mixer(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3NextForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Qwen3NextConfig
    Block = Qwen3NextBlock
    weight_map: ClassVar[str] = "paddock.weights.qwen3_next"
