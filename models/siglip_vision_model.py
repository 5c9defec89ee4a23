"""SigLIP's vision tower: CLIP's without a class token.

Zhai et al. 2023, arxiv.org/abs/2303.15343.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from paddock.graph import Module, Tensor
from paddock.layers import LayerNorm, Step
from paddock.models.clip_vision_model import (
    ClipVisionConfig,
    ClipVisionEmbeddings,
    ClipVisionEncoder,
)
from paddock.models.config import ActivationName, Eps


class SiglipVisionConfig(ClipVisionConfig):
    patch_size: int = Field(16, gt=0, le=2**10)
    hidden_act: ActivationName = "gelu_pytorch_tanh"
    layer_norm_eps: Eps = 1e-6

    class_token: ClassVar[bool] = False
    patch_bias: ClassVar[bool] = True
    ignored: ClassVar[frozenset[str]] = ClipVisionConfig.ignored | {"vision_use_head"}


class SiglipVisionModel(Module):
    def __init__(self, cfg: SiglipVisionConfig) -> None:
        self.embeddings = ClipVisionEmbeddings(cfg)
        self.encoder = ClipVisionEncoder(cfg)
        self.post_layernorm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def forward(self, step: Step) -> tuple[Tensor, ...]:
        """[image patches, hidden] before the first layer, and behind each, not normalised."""
        return self.encoder(self.embeddings(step), step.images)
