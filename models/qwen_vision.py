"""The towers of Qwen2-VL and Qwen2.5-VL: transformers over patches of images of any size.

Dehghani et al. 2023, arxiv.org/abs/2307.06304; Wang et al. 2024, arxiv.org/abs/2409.12191.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, ModuleList, Tensor, current_graph
from paddock.graph import ops as F
from paddock.layers import AxialRotary, PatchEmbedding, ReplicatedLinear, Step, activate
from paddock.models.config import Heads, Layers, ModelConfig


class QwenVisionConfig(ModelConfig):
    """What the two share; a subclass says the rest."""

    num_hidden_layers: Layers = 32
    num_attention_heads: Heads = 16
    in_channels: int = Field(3, gt=0, le=16)
    patch_size: int = Field(14, gt=0, le=2**10)
    temporal_patch_size: int = Field(2, gt=0, le=16)
    spatial_merge_size: int = Field(2, gt=0, le=16)
    rope_parameters: dict[str, Any] | None = None

    synonyms: ClassVar[Mapping[str, str]] = {
        "depth": "num_hidden_layers",
        "in_chans": "in_channels",
        "num_heads": "num_attention_heads",
        "spatial_patch_size": "patch_size",
    }

    @model_validator(mode="after")
    def _heads_turn(self) -> Self:
        if self.width % (4 * self.num_attention_heads):
            raise ValueError(
                f"{self.width} numbers of a patch are not {self.num_attention_heads} heads of"
                " halves of whole pairs"
            )
        given = dict(self.rope_parameters or {})
        theta = given.pop("rope_theta", 10_000.0)
        if given.pop("rope_type", "axial") != "axial" or given:
            raise ValueError(
                f"rope_parameters are {self.rope_parameters}, expected rope_type axial"
            )
        if not isinstance(theta, int | float) or not 1 < theta < 1e30:
            raise ValueError(f"rope_parameters: rope_theta is {theta!r}, expected a number above 1")
        return self

    @property
    def width(self) -> int:
        """Numbers of a patch in the tower."""
        raise NotImplementedError

    @property
    def window_width(self) -> int:
        """Numbers of a window behind it."""
        raise NotImplementedError

    @property
    def area(self) -> int | None:
        """Windows on each side of what most layers see; None: all of them see all of an image."""
        return None

    def sees_all(self, layer: int) -> bool:
        """Whether a patch sees its whole image in a layer."""
        return True

    def norm(self) -> Module:
        raise NotImplementedError

    def mlp(self) -> Module:
        raise NotImplementedError

    def rotary(self) -> AxialRotary:
        theta = (self.rope_parameters or {}).get("rope_theta", 10_000.0)
        return AxialRotary(self.width // self.num_attention_heads, theta)

    @property
    def patch(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width."""
        return self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size


class PatchEmbed(Module):
    def __init__(self, cfg: QwenVisionConfig) -> None:
        self.proj = PatchEmbedding(cfg.width, cfg.patch, bias=False)

    def forward(self, step: Step) -> Tensor:
        return self.proj(F.cast(step.patches(self.proj.size), current_graph().dtype))


class VisionAttention(Module):
    def __init__(self, cfg: QwenVisionConfig) -> None:
        self.qkv = ReplicatedLinear(cfg.width, 3 * cfg.width, bias=True)
        self.proj = ReplicatedLinear(cfg.width, cfg.width, bias=True)
        self.heads, self.head_dim = cfg.num_attention_heads, cfg.width // cfg.num_attention_heads
        self.rotary = cfg.rotary()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [patches, width] -> [patches, width]; a patch sees the step's sequence of it."""
        width = x.type.size(1)
        q, k, v = (
            F.reshape(part, self.heads, self.head_dim)
            for part in F.split(self.qkv(x), width, width, width)
        )
        q, k = self.rotary(q, k, step)
        y = F.bidirectional_attention(
            q, k, v, sequence_starts=step.sequence_starts, scale=self.head_dim**-0.5
        )
        return self.proj(F.reshape(y, width))


class VisionBlock(Module):
    def __init__(self, cfg: QwenVisionConfig) -> None:
        self.norm1, self.norm2 = cfg.norm(), cfg.norm()
        self.attn = VisionAttention(cfg)
        self.mlp = cfg.mlp()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attn(self.norm1(x), step)
        return x + self.mlp(self.norm2(x))


class MergerMLP(Module):
    def __init__(self, inner: int, outputs: int) -> None:
        self.fc1 = ReplicatedLinear(inner, inner, bias=True)
        self.fc2 = ReplicatedLinear(inner, outputs, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activate(self.fc1(x), "gelu"))


class PatchMerger(Module):
    """A window's patches, one behind another, through two products."""

    def __init__(self, cfg: QwenVisionConfig) -> None:
        self.patches = cfg.spatial_merge_size**2
        self.ln_q = cfg.norm()
        self.mlp = MergerMLP(cfg.width * self.patches, cfg.window_width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [patches, width], windows one after another -> [windows, window_width]."""
        return self.mlp(F.fold_rows(self.ln_q(x), self.patches))


class QwenVisionTransformer(Module):
    """Patches come area by area, so that areas are sequences, too."""

    def __init__(self, cfg: QwenVisionConfig) -> None:
        self.patch_embed = PatchEmbed(cfg)
        self.blocks = ModuleList(VisionBlock(cfg) for _ in range(cfg.num_hidden_layers))
        self.merger = PatchMerger(cfg)
        self.sees_all = [cfg.sees_all(layer) for layer in range(cfg.num_hidden_layers)]

    def forward(self, step: Step) -> Tensor:
        """What stands in the places of tokens: [windows, window_width]."""
        x = self.patch_embed(step)
        for block, all_of_it in zip(self.blocks.items, self.sees_all, strict=True):
            x = block(x, step.images if all_of_it else step.image_areas)
        return self.merger(x)
