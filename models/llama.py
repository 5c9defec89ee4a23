"""Llama 2 and 3: pre-norm blocks of grouped-query attention and a gated MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import GraphError, Module, Tensor
from paddock.layers import (
    ACTIVATIONS,
    Attention,
    Embedding,
    GatedMLP,
    Pipeline,
    RMSNorm,
    Rotary,
    RotaryScaling,
    Step,
    VocabHead,
)
from paddock.models.config import Context, Heads, Layers, ModelConfig, Size, rotary_scaling


class LlamaConfig(ModelConfig):
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads = Field(default_factory=lambda d: d["num_attention_heads"])
    head_dim: Heads = Field(
        default_factory=lambda d: d["hidden_size"] // d["num_attention_heads"],
        validate_default=True,
    )
    hidden_act: str = "silu"
    activation: Literal["swiglu"] | None = None  # Falcon3: what the MLP is anyway
    max_position_embeddings: Context = 2048
    rms_norm_eps: float = Field(1e-6, ge=0, lt=1)
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    default_theta: ClassVar[float] = 10_000.0
    default_rotary_part: ClassVar[float | None] = None  # of a head, where a file does not say
    interleaved: ClassVar[bool] = False  # pairs that turn are neighbours
    qk_norm: ClassVar[bool] = False
    images: ClassVar[bool] = False  # tokens of an image see all of it

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if "head_dim" not in self.model_fields_set and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads"
                f" {self.num_attention_heads}, and no head_dim is given"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of"
                f" num_key_value_heads {self.num_key_value_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act {self.hidden_act[:80]!r} is none of {', '.join(ACTIVATIONS)}"
            )
        try:
            Rotary(self.head_dim, self.scaling())
        except GraphError as error:
            raise ValueError(f"rope_parameters, head_dim {self.head_dim}: {error}") from None
        return self

    def scaling(self) -> RotaryScaling:
        return rotary_scaling(
            self.rope_parameters,
            self.rope_scaling,
            theta=self.rope_theta,
            default_theta=self.default_theta,
            max_position_embeddings=self.max_position_embeddings,
            partial_rotary_factor=self.rotary_part,
        )

    @property
    def rotary_part(self) -> float | None:
        """How much of a head turns, where `rope_parameters` does not say."""
        return self.default_rotary_part

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def out_bias(self) -> bool:
        """Whether the projection behind attention has a bias."""
        return self.attention_bias

    def has_rotary(self, layer: int) -> bool:
        """Whether this layer turns queries and keys by their positions."""
        return True

    def rotary(self, layer: int) -> Rotary | None:
        """How this layer turns queries and keys."""
        if not self.has_rotary(layer):
            return None
        return Rotary(self.head_dim, self.scaling(), interleaved=self.interleaved)

    def window(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, or None for all before it."""
        return None

    def norm(self) -> Module:
        """The normalisation of the residual stream."""
        return RMSNorm(self.hidden_size, eps=self.rms_norm_eps)

    def head_norm(self, heads: int) -> Module | None:
        """What normalises so many heads of queries, or of keys."""
        return RMSNorm(self.head_dim, eps=self.rms_norm_eps) if self.qk_norm else None

    def mlp(self) -> Module:
        return GatedMLP(
            self.hidden_size,
            self.intermediate_size,
            activation=self.hidden_act,
            bias=self.mlp_bias,
        )

    # Constants by which descendants multiply.

    @property
    def embedding_scale(self) -> float:
        return 1.0

    @property
    def attention_scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def residual_scale(self) -> float:
        """On what attention and MLP add to the residual stream."""
        return 1.0

    @property
    def logit_scale(self) -> float:
        return 1.0

    @property
    def score_cap(self) -> float | None:
        """The bound of attention's scores."""
        return None

    @property
    def logit_cap(self) -> float | None:
        """The bound of the logits."""
        return None

    @property
    def clip(self) -> float | None:
        """The bound of queries, keys and values."""
        return None


def attention(cfg: LlamaConfig, layer: int) -> Attention:
    """The attention of one layer."""
    return Attention(
        cfg.hidden_size,
        heads=cfg.num_attention_heads,
        kv_heads=cfg.num_key_value_heads,
        head_dim=cfg.head_dim,
        rotary=cfg.rotary(layer),
        window=cfg.window(layer),
        soft_cap=cfg.score_cap,
        scale=cfg.attention_scale,
        q_norm=cfg.head_norm(cfg.num_attention_heads),
        k_norm=cfg.head_norm(cfg.num_key_value_heads),
        clip=cfg.clip,
        bias=cfg.qkv_bias,
        out_bias=cfg.out_bias,
        images=cfg.images,
    )


class LlamaBlock(Module):
    def __init__(self, cfg: LlamaConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = attention(cfg, layer)
        self.post_attention_layernorm = cfg.norm()
        self.mlp = cfg.mlp()
        self.residual = cfg.residual_scale

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step) * self.residual
        return x + self.mlp(self.post_attention_layernorm(x)) * self.residual


class LlamaModel(Module):
    def __init__(self, cfg: LlamaConfig, block: Callable[[Any, int], Module]) -> None:
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.hidden_size, scale=cfg.embedding_scale)
        self.layers = Pipeline(block(cfg, i) for i in range(cfg.num_hidden_layers))
        self.norm = cfg.norm()

    def forward(self, step: Step, x: Tensor | None = None) -> Tensor:
        """`x`: what stands in the place of the tokens' embeddings, [tokens, hidden]."""
        if x is None:
            x = self.embed_tokens(step.token_ids)
        x = self.layers(x, step)
        return self.norm(x)


class LlamaForCausalLM(Module):
    Config: ClassVar[type[LlamaConfig]] = LlamaConfig
    Block: ClassVar[type[Any]] = LlamaBlock
    weight_map: ClassVar[str] = "paddock.weights.llama"

    def __init__(self, cfg: LlamaConfig) -> None:
        self.model = LlamaModel(cfg, type(self).Block)
        self.lm_head: Module = VocabHead(
            cfg.hidden_size, cfg.vocab_size, scale=cfg.logit_scale, soft_cap=cfg.logit_cap
        )

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)
