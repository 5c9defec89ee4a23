"""GPT-NeoX (Pythia): attention and MLP side by side, each behind a LayerNorm of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

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


class GPTNeoXConfig(ModelConfig):
    vocab_size: Size = 50_432
    hidden_size: Size = 6144
    intermediate_size: Size = 24_576
    num_hidden_layers: Layers = 44
    num_attention_heads: Heads = 64
    max_position_embeddings: Context = 2048
    hidden_act: ActivationName = "gelu"
    layer_norm_eps: Eps = 1e-5
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    attention_bias: bool = True
    use_parallel_residual: bool = True
    tie_word_embeddings: bool = False

    synonyms: ClassVar[Mapping[str, str]] = {
        "rotary_pct": "partial_rotary_factor",
        "rotary_emb_base": "rope_theta",
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"classifier_dropout"})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads)
        self.attention()
        return self

    def norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=self.layer_norm_eps)

    def attention(self) -> Attention:
        head_dim = self.hidden_size // self.num_attention_heads
        part = 0.25 if self.partial_rotary_factor is None else self.partial_rotary_factor
        scaling = rotary_scaling(
            self.rope_parameters,
            self.rope_scaling,
            theta=self.rope_theta,
            default_theta=10_000.0,
            max_position_embeddings=self.max_position_embeddings,
            partial_rotary_factor=part,
        )
        return Attention(
            self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_dim=head_dim,
            rotary=Rotary(head_dim, scaling),
            bias=self.attention_bias,
            out_bias=self.attention_bias,
        )


class GPTNeoXLayer(Module):
    def __init__(self, cfg: GPTNeoXConfig) -> None:
        self.input_layernorm = cfg.norm()
        self.attention = cfg.attention()
        self.post_attention_layernorm = cfg.norm()
        self.mlp = MLP(cfg.hidden_size, cfg.intermediate_size, activation=cfg.hidden_act)
        self.parallel = cfg.use_parallel_residual

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = x + self.attention(self.input_layernorm(x), step)
        return y + self.mlp(self.post_attention_layernorm(x if self.parallel else y))


class GPTNeoXModel(Module):
    def __init__(self, cfg: GPTNeoXConfig) -> None:
        self.embed_in = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = Pipeline(GPTNeoXLayer(cfg) for _ in range(cfg.num_hidden_layers))
        self.final_layer_norm = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.final_layer_norm(self.layers(self.embed_in(step.token_ids), step))


class GPTNeoXForCausalLM(Module):
    Config: ClassVar[type[GPTNeoXConfig]] = GPTNeoXConfig
    weight_map: ClassVar[str] = "paddock.weights.gpt_neox"

    def __init__(self, cfg: GPTNeoXConfig) -> None:
        self.gpt_neox = GPTNeoXModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.gpt_neox(step), step)
