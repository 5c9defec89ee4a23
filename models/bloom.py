"""BLOOM: GPT-2's blocks with a norm on embeddings and, for positions, ALiBi."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from paddock.graph import Module, Tensor
from paddock.layers import MLP, Attention, Embedding, LayerNorm, Pipeline, Step, VocabHead
from paddock.models.config import Context, Eps, Heads, Layers, ModelConfig, Size, check_heads


class BloomConfig(ModelConfig):
    vocab_size: Size = 250_880
    hidden_size: Size = 64
    num_hidden_layers: Layers = 2
    num_attention_heads: Heads = 8
    layer_norm_epsilon: Eps = 1e-5
    apply_residual_connection_post_layernorm: bool = False
    tie_word_embeddings: bool = True
    # What it was trained with; ALiBi has no end of its own.
    max_position_embeddings: Context = 2048

    synonyms: ClassVar[dict[str, str]] = {
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "seq_length": "max_position_embeddings",
    }
    ignored: ClassVar[frozenset[str]] = frozenset(
        (
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "masked_softmax_fusion",
            "offset_alibi",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "slow_but_exact",
            "unk_token_id",
        )
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads)
        return self

    def norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=self.layer_norm_epsilon)


class BloomBlock(Module):
    def __init__(self, cfg: BloomConfig) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attention = Attention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            kv_heads=cfg.num_attention_heads,
            head_dim=cfg.hidden_size // cfg.num_attention_heads,
            rotary=None,
            alibi=1.0,
            bias=True,
            out_bias=True,
        )
        self.post_attention_layernorm = cfg.norm()
        self.mlp = MLP(cfg.hidden_size, 4 * cfg.hidden_size, activation="gelu_tanh")
        self.from_norm = cfg.apply_residual_connection_post_layernorm

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.input_layernorm(x)
        x = (y if self.from_norm else x) + self.self_attention(y, step)
        y = self.post_attention_layernorm(x)
        return (y if self.from_norm else x) + self.mlp(y)


class BloomModel(Module):
    def __init__(self, cfg: BloomConfig) -> None:
        self.word_embeddings = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.word_embeddings_layernorm = cfg.norm()
        self.h = Pipeline(BloomBlock(cfg) for _ in range(cfg.num_hidden_layers))
        self.ln_f = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        x = self.word_embeddings_layernorm(self.word_embeddings(step.token_ids))
        return self.ln_f(self.h(x, step))


class BloomForCausalLM(Module):
    Config: ClassVar[type[BloomConfig]] = BloomConfig
    weight_map: ClassVar[str] = "paddock.weights.bloom"

    def __init__(self, cfg: BloomConfig) -> None:
        self.transformer = BloomModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.transformer(step), step)
