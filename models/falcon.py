"""Falcon: the 7B (one key for all queries), the 40B (keys for groups, two norms), and their kin."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Tensor
from paddock.layers import (
    MLP,
    Attention,
    Embedding,
    LayerNorm,
    Pipeline,
    Rotary,
    Step,
    VocabHead,
)
from paddock.models.config import (
    ActivationName,
    Context,
    Eps,
    Heads,
    Layers,
    ModelConfig,
    Size,
    check_heads,
    rotary_scaling,
)


class FalconConfig(ModelConfig):
    vocab_size: Size = 65_024
    hidden_size: Size = 4544
    ffn_hidden_size: Size = Field(default_factory=lambda d: 4 * d["hidden_size"])
    num_hidden_layers: Layers = 32
    num_attention_heads: Heads = 71
    num_kv_heads: Heads = Field(default_factory=lambda d: d["num_attention_heads"])
    num_ln_in_parallel_attn: Literal[1, 2] | None = None
    max_position_embeddings: Context = 2048
    activation: ActivationName = "gelu"
    layer_norm_epsilon: Eps = 1e-5
    alibi: bool = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    bias: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = True

    synonyms: ClassVar[dict[str, str]] = {
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_head_kv": "num_kv_heads",
    }

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads, self.kv_heads)
        self.attention()
        return self

    @property
    def kv_heads(self) -> int:
        if self.new_decoder_architecture:
            return self.num_kv_heads
        return 1 if self.multi_query else self.num_attention_heads

    @property
    def norms(self) -> int:
        """How many norms stand before attention and MLP that run side by side."""
        if not self.new_decoder_architecture:
            return 1
        return self.num_ln_in_parallel_attn or 2

    def norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=self.layer_norm_epsilon)

    def attention(self) -> Attention:
        head_dim = self.hidden_size // self.num_attention_heads
        scaling = rotary_scaling(
            self.rope_parameters,
            self.rope_scaling,
            theta=self.rope_theta,
            default_theta=10_000.0,
            max_position_embeddings=self.max_position_embeddings,
        )
        return Attention(
            self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.kv_heads,
            head_dim=head_dim,
            rotary=None if self.alibi else Rotary(head_dim, scaling),
            alibi=head_dim**-0.5 if self.alibi else None,  # added before scores are scaled
            bias=self.bias,
            out_bias=self.bias,
        )


class FalconBlock(Module):
    def __init__(self, cfg: FalconConfig) -> None:
        self.self_attention = cfg.attention()
        self.mlp = MLP(
            cfg.hidden_size, cfg.ffn_hidden_size, activation=cfg.activation, bias=cfg.bias
        )
        self.parallel = cfg.parallel_attn or cfg.new_decoder_architecture
        self.two_norms = self.parallel and cfg.norms == 2
        if self.two_norms:
            self.ln_attn, self.ln_mlp = cfg.norm(), cfg.norm()
        else:
            self.input_layernorm = cfg.norm()
        if not self.parallel:
            self.post_attention_layernorm = cfg.norm()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if self.two_norms:
            return x + self.self_attention(self.ln_attn(x), step) + self.mlp(self.ln_mlp(x))
        y = self.input_layernorm(x)
        if self.parallel:
            return x + self.self_attention(y, step) + self.mlp(y)
        x = x + self.self_attention(y, step)
        return x + self.mlp(self.post_attention_layernorm(x))


class FalconModel(Module):
    def __init__(self, cfg: FalconConfig) -> None:
        self.word_embeddings = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.h = Pipeline(FalconBlock(cfg) for _ in range(cfg.num_hidden_layers))
        self.ln_f = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.ln_f(self.h(self.word_embeddings(step.token_ids), step))


class FalconForCausalLM(Module):
    Config: ClassVar[type[FalconConfig]] = FalconConfig
    weight_map: ClassVar[str] = "paddock.weights.falcon"

    def __init__(self, cfg: FalconConfig) -> None:
        self.transformer = FalconModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.transformer(step), step)
