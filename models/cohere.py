"""Command R: attention and MLP side by side behind one LayerNorm, neighbours that turn together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from paddock.graph import Module
from paddock.layers import HeadwiseLayerNorm, LayerNorm
from paddock.models.config import Context, Eps
from paddock.models.llama import LlamaConfig, LlamaForCausalLM
from paddock.models.phi import PhiBlock


class CohereConfig(LlamaConfig):
    max_position_embeddings: Context = 8192
    layer_norm_eps: Eps = 1e-5
    # `logit_scale` of config.json; the name is that of what it gives below
    logits_multiplier: float = 0.0625
    use_qk_norm: bool = False
    mlp_bias: Literal[False] = False
    tie_word_embeddings: bool = True

    ignored: ClassVar[frozenset[str]] = frozenset({"model_max_length"})
    default_theta: ClassVar[float] = 500_000.0
    interleaved: ClassVar[bool] = True
    synonyms: ClassVar[dict[str, str]] = {"logit_scale": "logits_multiplier"}

    @property
    def logit_scale(self) -> float:
        return self.logits_multiplier

    def norm(self) -> Module:
        return LayerNorm(self.hidden_size, eps=self.layer_norm_eps, bias=False)

    def head_norm(self, heads: int) -> Module | None:
        if not self.use_qk_norm:
            return None
        return HeadwiseLayerNorm(heads, self.head_dim, eps=self.layer_norm_eps)


class CohereForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = CohereConfig
    Block: ClassVar[type[Any]] = PhiBlock
