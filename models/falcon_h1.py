"""Falcon-H1: attention and Mamba 2 side by side in every layer, and constant multipliers.

Zuo et al. 2025, arxiv.org/abs/2507.22448.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from paddock.graph import Module, Tensor
from paddock.layers import ColumnLinear, GatedRMSNorm, Mamba2Mixer, RowLinear, Step, activate
from paddock.models.bamba import BambaConfig, BambaForCausalLM
from paddock.models.config import Context, Size
from paddock.models.llama import LlamaConfig, attention
from paddock.models.mamba2 import dt_limits


class FalconH1Config(BambaConfig):
    max_position_embeddings: Context = 8192
    mamba_d_ssm: Size | None = 1024
    mamba_norm_before_gate: bool = True
    mamba_rms_norm: bool = False
    projectors_bias: bool = False
    embedding_multiplier: float = 1.0
    lm_head_multiplier: float = 1.0
    key_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0
    mlp_multipliers: Annotated[tuple[float, float], Field(strict=False)] = (1.0, 1.0)
    ssm_multipliers: Annotated[tuple[float, float, float, float, float], Field(strict=False)] = (
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
    )

    default_rotary_part: ClassVar[float | None] = None
    ignored: ClassVar[frozenset[str]] = BambaConfig.ignored | {
        *("attn_layer_indices", "mamba_use_mlp", "mlp_expansion_factor"),
    }

    @property
    def inner(self) -> int:
        if self.mamba_d_ssm is None:
            return self.mamba_expand * self.hidden_size
        return self.mamba_d_ssm

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def logit_scale(self) -> float:
        return self.lm_head_multiplier

    @property
    def attention_scale(self) -> float:
        return float(self.head_dim**-0.5) * self.key_multiplier  # keys' scale is the scores'

    def state_space(self) -> Module:
        norm = GatedRMSNorm(
            self.inner,
            groups=self.mamba_n_groups,
            eps=self.rms_norm_eps,
            norm_first=self.mamba_norm_before_gate,
        )
        return Mamba2Mixer(
            self.hidden_size,
            heads=self.mamba_n_heads,
            head_dim=self.state_head_dim,
            groups=self.mamba_n_groups,
            state=self.mamba_d_state,
            width=self.mamba_d_conv,
            activation=self.hidden_act,
            bias=self.mamba_proj_bias,
            conv_bias=self.mamba_conv_bias,
            out_bias=self.projectors_bias,
            norm=norm if self.mamba_rms_norm else None,
            dt_limits=dt_limits(self.time_step_limit),
            scales=self.ssm_multipliers,
        )


class FalconH1MLP(Module):
    """A gated MLP, its gate and its result multiplied by constants."""

    def __init__(self, cfg: FalconH1Config) -> None:
        inner = cfg.intermediate_size
        parts = {"gate": inner, "up": inner}
        self.gate_up_proj = ColumnLinear(cfg.hidden_size, parts, bias=cfg.mlp_bias)
        self.down_proj = RowLinear(inner, cfg.hidden_size, bias=cfg.mlp_bias)
        self.activation = cfg.hidden_act
        self.gate_scale, self.down_scale = cfg.mlp_multipliers

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x)
        y: Tensor = self.down_proj(activate(gate * self.gate_scale, self.activation) * up)
        return y * self.down_scale


class FalconH1Block(Module):
    def __init__(self, cfg: FalconH1Config, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.mamba = cfg.state_space()
        self.self_attn = attention(cfg, layer)
        self.pre_ff_layernorm = cfg.norm()
        self.feed_forward = FalconH1MLP(cfg)
        self.state_scales = cfg.ssm_in_multiplier, cfg.ssm_out_multiplier
        self.attention_scales = cfg.attention_in_multiplier, cfg.attention_out_multiplier

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.input_layernorm(x)
        (before, behind), (into, out) = self.state_scales, self.attention_scales
        x = x + (self.mamba(y * before, step) * behind + self.self_attn(y * into, step) * out)
        return x + self.feed_forward(self.pre_ff_layernorm(x))


class FalconH1ForCausalLM(BambaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = FalconH1Config
    Block = FalconH1Block
