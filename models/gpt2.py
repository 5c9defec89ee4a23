"""GPT-2: pre-norm blocks with LayerNorm, a plain MLP and learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Tensor
from paddock.layers import (
    MLP,
    Attention,
    Embedding,
    LayerNorm,
    Pipeline,
    PositionEmbedding,
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
)


class GPT2Config(ModelConfig):
    vocab_size: Size = 50_257
    hidden_size: Size = 768
    intermediate_size: Size = Field(default_factory=lambda d: 4 * d["hidden_size"])
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    max_position_embeddings: Context = 1024
    activation_function: ActivationName = "gelu_new"
    layer_norm_epsilon: Eps = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    synonyms: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    }
    ignored: ClassVar[frozenset[str]] = frozenset(
        (
            "attn_pdrop",
            "n_ctx",  # n_positions again
            "reorder_and_upcast_attn",  # how transformers multiplies; the product is the same
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        )
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads)
        return self

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=self.layer_norm_epsilon)

    def attention(self, layer: int) -> Attention:
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return Attention(
            self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_dim=self.head_dim,
            rotary=None,
            scale=scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale,
            bias=True,
            out_bias=True,
        )


class GPT2Block(Module):
    def __init__(self, cfg: GPT2Config, layer: int) -> None:
        self.ln_1 = cfg.norm()
        self.attn = cfg.attention(layer)
        self.ln_2 = cfg.norm()
        self.mlp = MLP(cfg.hidden_size, cfg.intermediate_size, activation=cfg.activation_function)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attn(self.ln_1(x), step)
        return x + self.mlp(self.ln_2(x))


class GPT2Model(Module):
    def __init__(self, cfg: GPT2Config) -> None:
        self.wte = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.wpe = PositionEmbedding(cfg.max_position_embeddings, cfg.hidden_size)
        self.h = Pipeline(GPT2Block(cfg, i) for i in range(cfg.num_hidden_layers))
        self.ln_f = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        x = self.wte(step.token_ids) + self.wpe(step.positions)
        return self.ln_f(self.h(x, step))


class GPT2LMHeadModel(Module):
    Config: ClassVar[type[GPT2Config]] = GPT2Config
    weight_map: ClassVar[str] = "paddock.weights.gpt2"

    def __init__(self, cfg: GPT2Config) -> None:
        self.transformer = GPT2Model(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.transformer(step), step)
