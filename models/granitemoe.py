"""Granite 3 MoE: Llama with experts and constant multipliers, as IBM trained it."""

from typing import ClassVar

from pydantic import Field

from paddock.models.config import Context, Heads
from paddock.models.llama import LlamaConfig, LlamaForCausalLM
from paddock.models.mixtral import MixtralBlock, MixtralConfig


class GraniteMoeConfig(MixtralConfig):
    num_key_value_heads: Heads = Field(default_factory=lambda d: d["num_attention_heads"])
    max_position_embeddings: Context = 2048
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = Field(1.0, gt=0)

    default_theta: ClassVar[float] = 10_000.0

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def attention_scale(self) -> float:
        return self.attention_multiplier

    @property
    def residual_scale(self) -> float:
        return self.residual_multiplier

    @property
    def logit_scale(self) -> float:
        return 1 / self.logits_scaling


class GraniteMoeForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = GraniteMoeConfig
    Block = MixtralBlock
    weight_map: ClassVar[str] = "paddock.weights.granitemoe"
