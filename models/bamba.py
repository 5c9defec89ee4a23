"""Bamba: Mamba 2 in most layers, grouped-query attention in a few, an MLP behind each.

IBM, Princeton, CMU and UIUC 2024, huggingface.co/blog/bamba.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Tensor
from paddock.layers import Embedding, GatedRMSNorm, Mamba2Mixer, Pipeline, Step, VocabHead
from paddock.models.config import Context, Heads, Size
from paddock.models.llama import LlamaConfig, attention
from paddock.models.mamba2 import Limits, check_heads, dt_limits


class BambaConfig(LlamaConfig):
    num_key_value_heads: Heads = 8
    max_position_embeddings: Context = 262_144
    rms_norm_eps: float = Field(1e-5, ge=0, lt=1)
    partial_rotary_factor: float | None = Field(None, gt=0, le=1)
    attn_layer_indices: Annotated[tuple[int, ...], Field(strict=False)] | None = None
    mamba_n_heads: Heads = 128
    mamba_d_head: Size | Literal["auto"] = "auto"
    mamba_n_groups: Heads = 1
    mamba_d_state: Size = 256
    mamba_d_conv: int = Field(4, gt=0, le=64)
    mamba_expand: int = Field(2, gt=0, le=64)
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: Limits | None = None

    default_rotary_part: ClassVar[float | None] = 0.5
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            *("layer_types", "layers_block_type", "mamba_chunk_size", "num_logits_to_keep"),
            *("time_step_floor", "time_step_max", "time_step_min", "use_mamba_kernels"),
            "z_loss_coefficient",
        }
    )

    @model_validator(mode="after")
    def _heads_are_channels(self) -> Self:
        heads = self.mamba_n_heads
        check_heads(heads, self.state_head_dim, self.mamba_n_groups, self.inner)
        return self

    @property
    def rotary_part(self) -> float | None:
        return self.partial_rotary_factor or self.default_rotary_part

    @property
    def inner(self) -> int:
        """Channels of the state space."""
        return self.mamba_expand * self.hidden_size

    @property
    def state_head_dim(self) -> int:
        if self.mamba_d_head == "auto":
            return self.inner // self.mamba_n_heads
        return self.mamba_d_head

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention, and no state space."""
        return layer in (self.attn_layer_indices or ())

    def state_space(self) -> Module:
        norm = GatedRMSNorm(self.inner, groups=self.mamba_n_groups, eps=self.rms_norm_eps)
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
            out_bias=self.mamba_proj_bias,
            norm=norm,
            dt_limits=dt_limits(self.time_step_limit),
        )

    def feed_forward(self, layer: int) -> Module:
        return self.mlp()


class HybridBlock(Module):
    """A state space or attention, and what stands behind either. Jamba's are the same."""

    def __init__(self, cfg: Any, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.attends = cfg.attends(layer)
        if self.attends:
            self.self_attn = attention(cfg, layer)
        else:
            self.mamba = cfg.state_space()
        self.pre_ff_layernorm = cfg.norm()
        self.feed_forward = cfg.feed_forward(layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        mixer = self.self_attn if self.attends else self.mamba
        x = x + mixer(self.input_layernorm(x), step)
        return x + self.feed_forward(self.pre_ff_layernorm(x))


class HybridModel(Module):
    def __init__(self, cfg: LlamaConfig, block: Callable[[Any, int], Module]) -> None:
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.hidden_size, scale=cfg.embedding_scale)
        self.layers = Pipeline(block(cfg, i) for i in range(cfg.num_hidden_layers))
        self.final_layernorm = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.final_layernorm(self.layers(self.embed_tokens(step.token_ids), step))


class BambaForCausalLM(Module):
    Config: ClassVar[type[LlamaConfig]] = BambaConfig
    Block: ClassVar[type[Any]] = HybridBlock
    weight_map: ClassVar[str] = "paddock.weights.bamba"

    def __init__(self, cfg: LlamaConfig) -> None:
        self.model = HybridModel(cfg, type(self).Block)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size, scale=cfg.logit_scale)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)
