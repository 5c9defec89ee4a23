"""Phi-3.5-MoE: Llama with LayerNorms and experts, two of them chosen by SparseMixer.

Abdin et al. 2024, arxiv.org/abs/2404.14219; Liu et al. 2024, arxiv.org/abs/2409.12136.
"""

from typing import ClassVar, Literal, cast

from pydantic import Field

from paddock.graph import Module
from paddock.graph.ops import Route
from paddock.layers import LayerNorm, VocabHead
from paddock.models.config import Context, Size
from paddock.models.llama import LlamaConfig, LlamaForCausalLM
from paddock.models.mixtral import MixtralBlock, MixtralConfig


class PhimoeConfig(MixtralConfig):
    original_max_position_embeddings: Context | None = None  # rope_scaling's, too
    rms_norm_eps: float = Field(1e-5, ge=0, lt=1)
    num_local_experts: Size = 16
    num_experts_per_tok: Literal[2] = 2
    router_jitter_noise: float = Field(0.01, ge=0)
    lm_head_bias: bool = False

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"expert_dropout", "input_jitter_noise", "output_router_logits"}
    )

    def norm(self) -> Module:
        return LayerNorm(self.hidden_size, eps=self.rms_norm_eps)

    def route(self) -> Route:
        return Route(2, "sparsemixer", jitter=self.router_jitter_noise)


class PhimoeForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = PhimoeConfig
    Block = MixtralBlock
    weight_map: ClassVar[str] = "paddock.weights.mixtral"

    def __init__(self, cfg: LlamaConfig) -> None:
        super().__init__(cfg)
        bias = cast(PhimoeConfig, cfg).lm_head_bias
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size, bias=bias)


class PhiMoEForCausalLM(PhimoeForCausalLM):
    """As published checkpoints spell it."""
