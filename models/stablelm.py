"""StableLM 2 and 3B: Llama with LayerNorm and a rotary on a quarter of each head."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from paddock.graph import Module, Tensor
from paddock.layers import HeadwiseLayerNorm, LayerNorm, Step
from paddock.models.config import Context, Eps
from paddock.models.llama import LlamaConfig, LlamaForCausalLM, attention


class StableLmConfig(LlamaConfig):
    max_position_embeddings: Context = 4096
    layer_norm_eps: Eps = 1e-5
    partial_rotary_factor: float | None = None
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    @property
    def rotary_part(self) -> float:
        return 0.25 if self.partial_rotary_factor is None else self.partial_rotary_factor

    @property
    def qkv_bias(self) -> bool:
        return self.use_qkv_bias

    def norm(self) -> Module:
        return LayerNorm(self.hidden_size, eps=self.layer_norm_eps)

    def head_norm(self, heads: int) -> Module | None:
        if not self.qk_layernorm:
            return None
        return HeadwiseLayerNorm(heads, self.head_dim, eps=self.layer_norm_eps)


class StableLmBlock(Module):
    def __init__(self, cfg: StableLmConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = attention(cfg, layer)
        self.post_attention_layernorm = None if cfg.use_parallel_residual else cfg.norm()
        self.mlp = cfg.mlp()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.input_layernorm(x)
        if self.post_attention_layernorm is None:
            return x + self.self_attn(y, step) + self.mlp(y)
        x = x + self.self_attn(y, step)
        return x + self.mlp(self.post_attention_layernorm(x))


class StableLmForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = StableLmConfig
    Block: ClassVar[type[Any]] = StableLmBlock
    weight_map: ClassVar[str] = "paddock.weights.stablelm"
