"""OLMoE: Llama with experts, and a norm over all heads of queries, and of keys, together.

Muennighoff et al. 2024, arxiv.org/abs/2409.02060.
"""

from typing import ClassVar

from pydantic import Field

from paddock.graph import Module
from paddock.graph.ops import Route
from paddock.layers import Experts, JointRMSNorm, MixtureOfExperts, Router
from paddock.models.config import Context, Size
from paddock.models.llama import LlamaBlock, LlamaConfig, LlamaForCausalLM


class OlmoeConfig(LlamaConfig):
    max_position_embeddings: Context = 4096
    rms_norm_eps: float = Field(1e-5, ge=0, lt=1)
    clip_qkv: float | None = Field(None, gt=0)
    num_experts: Size = 64
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False

    ignored: ClassVar[frozenset[str]] = frozenset({"output_router_logits"})

    @property
    def clip(self) -> float | None:
        return self.clip_qkv

    def head_norm(self, heads: int) -> Module:
        return JointRMSNorm(heads, self.head_dim, eps=self.rms_norm_eps)

    def mlp(self) -> Module:
        route = Route(self.num_experts_per_tok, normalize=self.norm_topk_prob)
        return MixtureOfExperts(
            Router(self.hidden_size, self.num_experts, route),
            Experts(
                self.num_experts,
                self.hidden_size,
                self.intermediate_size,
                activation=self.hidden_act,
            ),
        )


class OlmoeForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = OlmoeConfig
    Block = LlamaBlock
    weight_map: ClassVar[str] = "paddock.weights.qwen2_moe"
