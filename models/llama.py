"""Llama 2 and 3: pre-norm blocks of grouped-query attention and a gated MLP."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import GraphError, Module, Tensor
from paddock.layers import (
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
    qk_norm: ClassVar[bool] = False

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
        )

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

    def window(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, or None for all before it."""
        return None


# hidden_act by Hugging Face's names -> the graph's.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}


class LlamaBlock(Module):
    def __init__(self, cfg: LlamaConfig, layer: int) -> None:
        self.input_layernorm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.self_attn = Attention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            kv_heads=cfg.num_key_value_heads,
            head_dim=cfg.head_dim,
            rotary=Rotary(cfg.head_dim, cfg.scaling()) if cfg.has_rotary(layer) else None,
            window=cfg.window(layer),
            qk_norm_eps=cfg.rms_norm_eps if cfg.qk_norm else None,
            bias=cfg.qkv_bias,
            out_bias=cfg.out_bias,
        )
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.mlp = GatedMLP(
            cfg.hidden_size,
            cfg.intermediate_size,
            activation=ACTIVATIONS[cfg.hidden_act],
            bias=cfg.mlp_bias,
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(Module):
    def __init__(self, cfg: LlamaConfig) -> None:
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = Pipeline(LlamaBlock(cfg, i) for i in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)

    def forward(self, step: Step) -> Tensor:
        x = self.embed_tokens(step.token_ids)
        x = self.layers(x, step)
        return self.norm(x)


class LlamaForCausalLM(Module):
    Config: ClassVar[type[LlamaConfig]] = LlamaConfig
    weight_map: ClassVar[str] = "paddock.weights.llama"

    def __init__(self, cfg: LlamaConfig) -> None:
        self.model = LlamaModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)
