"""MiniCPM: Llama with the multipliers of Hu et al. 2024, arxiv.org/abs/2404.06395."""

from typing import ClassVar

from pydantic import Field

from paddock.models.config import Context, Size
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class MiniCPMConfig(LlamaConfig):
    max_position_embeddings: Context = 2048
    scale_emb: float = 1.0
    scale_depth: float = 1.0
    dim_model_base: Size = Field(default_factory=lambda d: d["hidden_size"])
    tie_word_embeddings: bool = True

    ignored: ClassVar[frozenset[str]] = frozenset({"mup_denominator"})

    @property
    def embedding_scale(self) -> float:
        return self.scale_emb

    @property
    def residual_scale(self) -> float:
        return float(self.scale_depth / self.num_hidden_layers**0.5)

    @property
    def logit_scale(self) -> float:
        return self.dim_model_base / self.hidden_size


class MiniCPMForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = MiniCPMConfig
