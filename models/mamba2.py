"""Mamba 2: Mamba whose state space has heads.

Dao and Gu 2024, arxiv.org/abs/2405.21060.
"""

import math
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from paddock.graph import Module
from paddock.layers import GatedRMSNorm, Mamba2Mixer
from paddock.models.config import Heads, Size
from paddock.models.mamba import MambaConfig, MambaForCausalLM


def _without_infinity(limits: Any) -> Any:
    """JSON has no infinity: files write it as a word, or in transformers' way."""
    if not isinstance(limits, list):
        return limits
    return [None if v == math.inf or v == {"__float__": "Infinity"} else v for v in limits]


Limits = Annotated[
    tuple[float | None, float | None], BeforeValidator(_without_infinity), Field(strict=False)
]
"""Of time steps; None where there is no bound."""


class Mamba2Config(MambaConfig):
    vocab_size: Size = 32768
    hidden_size: Size = 4096
    state_size: Size = 128
    num_heads: Heads = 128
    head_dim: Heads = 64
    n_groups: Heads = 8
    time_step_limit: Limits | None = None
    tie_word_embeddings: bool = False

    ignored: ClassVar[frozenset[str]] = MambaConfig.ignored | {"norm_before_gate"}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_heads(self.num_heads, self.head_dim, self.n_groups, self.inner)
        return self

    def mixer(self) -> Module:
        norm = GatedRMSNorm(self.inner, groups=self.n_groups, eps=self.layer_norm_epsilon)
        return Mamba2Mixer(
            self.hidden_size,
            heads=self.num_heads,
            head_dim=self.head_dim,
            groups=self.n_groups,
            state=self.state_size,
            width=self.conv_kernel,
            activation=self.hidden_act,
            bias=self.use_bias,
            conv_bias=self.use_conv_bias,
            out_bias=self.use_bias,
            norm=norm,
            dt_limits=dt_limits(self.time_step_limit),
        )


class Mamba2ForCausalLM(MambaForCausalLM):
    Config: ClassVar[type[MambaConfig]] = Mamba2Config


def check_heads(heads: int, head_dim: int, groups: int, inner: int) -> None:
    """Raise `ValueError` unless the heads are the channels, in whole groups."""
    if heads * head_dim != inner:
        raise ValueError(f"{heads} heads of {head_dim} are not {inner} channels")
    if heads % groups:
        raise ValueError(f"{heads} heads are not {groups} equal groups")


def dt_limits(limits: tuple[float | None, float | None] | None) -> tuple[float, float | None]:
    """The least and the greatest time step; None where it is not bounded."""
    if limits is None:
        return 0.0, None
    low, high = limits
    return low or 0.0, None if high is None or high > 1e30 else high
