"""CLIP's vision tower: a transformer over the patches of an image.

Radford et al. 2021, arxiv.org/abs/2103.00020; Dosovitskiy et al. 2020, arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, ModuleList, Parameter, Tensor, current_graph
from paddock.graph import ops as F
from paddock.layers import (
    LayerNorm,
    PatchEmbedding,
    PositionEmbedding,
    ReplicatedLinear,
    Step,
    TowerMLP,
)
from paddock.models.config import (
    ActivationName,
    Eps,
    Heads,
    Layers,
    ModelConfig,
    Size,
    check_heads,
)


class ClipVisionConfig(ModelConfig):
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    num_channels: int = Field(3, gt=0, le=16)
    image_size: int = Field(224, gt=0, le=2**14)
    patch_size: int = Field(32, gt=0, le=2**10)
    hidden_act: ActivationName = "quick_gelu"
    layer_norm_eps: Eps = 1e-5

    class_token: ClassVar[bool] = True
    patch_bias: ClassVar[bool] = False
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "initializer_factor", "projection_dim", "vocab_size"}
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is less than a patch's side")
        return self

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def row_size(self) -> int:
        """Numbers of a patch, and one that says whether it is none."""
        return self.num_channels * self.patch_size**2 + self.class_token


class ClipVisionEmbeddings(Module):
    def __init__(self, cfg: ClipVisionConfig) -> None:
        self.class_embedding = Parameter((cfg.hidden_size,)) if cfg.class_token else None
        window = (cfg.num_channels, cfg.patch_size, cfg.patch_size)
        self.patch_embedding = PatchEmbedding(cfg.hidden_size, window, bias=cfg.patch_bias)
        self.position_embedding = PositionEmbedding(cfg.patches + cfg.class_token, cfg.hidden_size)
        self.row_size = cfg.row_size

    def forward(self, step: Step) -> Tensor:
        rows = F.cast(step.patches(self.row_size), current_graph().dtype)
        if self.class_embedding is None:
            x = self.patch_embedding(rows)
        else:
            patches, is_class = F.split(rows, self.row_size - 1, 1)
            embedding = F.reshape(self.class_embedding.tensor, 1)
            x = self.patch_embedding(patches) + F.linear(is_class, embedding)
        return x + self.position_embedding(step.image_positions)


class ClipAttention(Module):
    """Every patch sees its whole image."""

    def __init__(self, cfg: ClipVisionConfig) -> None:
        hidden = cfg.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            ReplicatedLinear(hidden, hidden, bias=True) for _ in range(4)
        )
        self.heads, self.head_dim = cfg.num_attention_heads, hidden // cfg.num_attention_heads

    def forward(self, x: Tensor, step: Step) -> Tensor:
        q, k, v = (
            F.reshape(project(x), self.heads, self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.bidirectional_attention(
            q, k, v, sequence_starts=step.sequence_starts, scale=self.head_dim**-0.5
        )
        return self.out_proj(F.reshape(y, self.heads * self.head_dim))


class ClipVisionLayer(Module):
    def __init__(self, cfg: ClipVisionConfig) -> None:
        self.layer_norm1 = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.self_attn = ClipAttention(cfg)
        self.layer_norm2 = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.mlp = TowerMLP(cfg.hidden_size, cfg.intermediate_size, activation=cfg.hidden_act)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), step)
        return x + self.mlp(self.layer_norm2(x))


class ClipVisionEncoder(Module):
    def __init__(self, cfg: ClipVisionConfig) -> None:
        self.layers = ModuleList(ClipVisionLayer(cfg) for _ in range(cfg.num_hidden_layers))

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        """What goes into the first layer, and what comes out of each."""
        states = [x]
        for layer in self.layers.items:
            states.append(layer(states[-1], step))
        return tuple(states)


class CLIPVisionModel(Module):
    """The whole of it is on every rank of a stage, so that steps without images need no exchange.

    A graph that reads what comes out of an earlier layer has none of the later ones."""

    def __init__(self, cfg: ClipVisionConfig) -> None:
        self.embeddings = ClipVisionEmbeddings(cfg)
        self.pre_layrnorm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)  # spelt so
        self.encoder = ClipVisionEncoder(cfg)
        self.post_layernorm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def forward(self, step: Step) -> tuple[Tensor, ...]:
        """[image patches, hidden] before the first layer, and behind each, not normalised."""
        return self.encoder(self.pre_layrnorm(self.embeddings(step)), step.images)
