"""Mixtral: Mistral whose MLPs are experts, two of them for each token.

Jiang et al. 2024, arxiv.org/abs/2401.04088.
"""

from typing import ClassVar

from paddock.graph import Module, Tensor
from paddock.graph.ops import Route
from paddock.layers import Experts, MixtureOfExperts, Router, Step
from paddock.models.config import Context, Heads, Size
from paddock.models.llama import LlamaConfig, LlamaForCausalLM, attention


class MixtralConfig(LlamaConfig):
    num_key_value_heads: Heads
    max_position_embeddings: Context = 131_072
    sliding_window: Size | None = None
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2

    default_theta: ClassVar[float] = 1_000_000.0
    # Noise and losses of training.
    ignored: ClassVar[frozenset[str]] = frozenset({"router_jitter_noise", "output_router_logits"})

    def window(self, layer: int) -> int | None:
        return self.sliding_window

    def route(self) -> Route:
        return Route(self.num_experts_per_tok, "chosen_softmax")

    def mlp(self) -> Module:
        return MixtureOfExperts(
            Router(self.hidden_size, self.num_local_experts, self.route()),
            Experts(
                self.num_local_experts,
                self.hidden_size,
                self.intermediate_size,
                activation=self.hidden_act,
            ),
        )


class MixtralBlock(Module):
    def __init__(self, cfg: LlamaConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = attention(cfg, layer)
        self.post_attention_layernorm = cfg.norm()
        self.block_sparse_moe = cfg.mlp()
        self.residual = cfg.residual_scale

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step) * self.residual
        return x + self.block_sparse_moe(self.post_attention_layernorm(x)) * self.residual


class MixtralForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = MixtralConfig
    Block = MixtralBlock
    weight_map: ClassVar[str] = "paddock.weights.mixtral"
