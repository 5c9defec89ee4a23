"""BART: the transformer as first described, its encoder and decoder trained to repair text.

Lewis et al. 2019, arxiv.org/abs/1910.13461. mBART, Marian, M2M-100 and Pegasus are of its build.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

from paddock.graph import DType, Module, Parameter, Tensor
from paddock.graph import ops as F
from paddock.layers import (
    MLP,
    Attention,
    BidirectionalAttention,
    CrossAttention,
    Embedding,
    LayerNorm,
    PositionEmbedding,
    Stack,
    Step,
    VocabHead,
)
from paddock.models.config import (
    ActivationName,
    Context,
    EncoderDecoderConfig,
    Heads,
    Layers,
    Size,
    check_heads,
)


class BartConfig(EncoderDecoderConfig):
    vocab_size: Size = 50265
    hidden_size: Size = 1024
    num_hidden_layers: Layers = 12
    num_decoder_layers: Layers = 12
    num_attention_heads: Heads = 16
    decoder_attention_heads: Heads = 16
    intermediate_size: Size = 4096
    decoder_ffn_dim: Size = 4096
    activation_function: ActivationName = "gelu"
    max_position_embeddings: Context = 1024
    scale_embedding: bool = False
    tie_word_embeddings: bool = True

    norm_first: ClassVar[bool] = False  # norms stand before attention and MLP, and one at the end
    norm_embedding: ClassVar[bool] = True

    synonyms: ClassVar[Mapping[str, str]] = {
        "d_model": "hidden_size",
        "encoder_layers": "num_hidden_layers",
        "decoder_layers": "num_decoder_layers",
        "encoder_attention_heads": "num_attention_heads",
        "encoder_ffn_dim": "intermediate_size",
    }
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            *("activation_dropout", "classif_dropout", "classifier_dropout", "decoder_layerdrop"),
            *("dropout", "encoder_layerdrop", "force_bos_token_to_be_generated", "init_std"),
            *("is_decoder", "is_encoder_decoder", "num_labels", "output_past"),
            # what an early version of transformers was told, which the class itself says
            *("add_bias_logits", "add_final_layer_norm", "extra_pos_embeddings"),
            *("normalize_before", "normalize_embedding", "static_position_embeddings"),
        }
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads)
        check_heads(self.hidden_size, self.decoder_attention_heads)
        return self

    def positions(self) -> Module:
        """What is added to a token by its place. Two rows are of a padding that it once had."""
        return PositionEmbedding(self.max_position_embeddings, self.hidden_size, offset=2)


class BartEncoderLayer(Module):
    def __init__(self, cfg: BartConfig) -> None:
        hidden, heads = cfg.hidden_size, cfg.num_attention_heads
        self.self_attn = BidirectionalAttention(hidden, heads=heads, head_dim=hidden // heads)
        self.self_attn_layer_norm = LayerNorm(hidden, eps=1e-5)
        self.mlp = MLP(hidden, cfg.intermediate_size, activation=cfg.activation_function)
        self.final_layer_norm = LayerNorm(hidden, eps=1e-5)
        self.norm_first = cfg.norm_first

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if self.norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), step)
            return x + self.mlp(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x, step))
        return self.final_layer_norm(x + self.mlp(x))


class BartDecoderLayer(Module):
    def __init__(self, cfg: BartConfig) -> None:
        hidden, heads = cfg.hidden_size, cfg.decoder_attention_heads
        size = hidden // heads
        self.self_attn = Attention(
            hidden,
            heads=heads,
            kv_heads=heads,
            head_dim=size,
            rotary=None,
            bias=True,
            out_bias=True,
        )
        self.self_attn_layer_norm = LayerNorm(hidden, eps=1e-5)
        self.encoder_attn = CrossAttention(
            hidden, heads=heads, head_dim=size, beside=self.self_attn
        )
        self.encoder_attn_layer_norm = LayerNorm(hidden, eps=1e-5)
        self.mlp = MLP(hidden, cfg.decoder_ffn_dim, activation=cfg.activation_function)
        self.final_layer_norm = LayerNorm(hidden, eps=1e-5)
        self.norm_first = cfg.norm_first

    def forward(self, x: Tensor, source: Tensor, step: Step) -> Tensor:
        if self.norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), step)
            x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), source, step)
            return x + self.mlp(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x, step))
        x = self.encoder_attn_layer_norm(x + self.encoder_attn(x, source, step))
        return self.final_layer_norm(x + self.mlp(x))


class BartStack(Module):
    """The encoder, or the decoder: positions, layers, and the norms that its family has."""

    def __init__(self, cfg: BartConfig, layers: list[Module]) -> None:
        hidden = cfg.hidden_size
        self.embed_positions = cfg.positions()
        if cfg.norm_embedding:
            self.layernorm_embedding = LayerNorm(hidden, eps=1e-5)
        self.layers = Stack(layers)
        if cfg.norm_first:
            self.layer_norm = LayerNorm(hidden, eps=1e-5)
        self.norm_embedding, self.norm_first = cfg.norm_embedding, cfg.norm_first

    def forward(self, x: Tensor, positions: Tensor, *beside: Any) -> Tensor:
        """x: [tokens, hidden], of the tokens alone."""
        x = x + self.embed_positions(positions)
        if self.norm_embedding:
            x = self.layernorm_embedding(x)
        x = self.layers(x, *beside)
        return self.layer_norm(x) if self.norm_first else x


class BartModel(Module):
    def __init__(self, cfg: BartConfig) -> None:
        scale = math.sqrt(cfg.hidden_size) if cfg.scale_embedding else 1.0
        self.shared = Embedding(cfg.vocab_size, cfg.hidden_size, scale=scale)
        self.encoder = BartStack(cfg, [BartEncoderLayer(cfg) for _ in range(cfg.num_hidden_layers)])
        self.decoder = BartStack(
            cfg, [BartDecoderLayer(cfg) for _ in range(cfg.num_decoder_layers)]
        )

    def forward(self, step: Step) -> Tensor:
        source = self.encoder(self.shared(step.source_ids), step.source_positions, step.source)
        return self.decoder(self.shared(step.token_ids), step.positions, source, step)


class BartForConditionalGeneration(Module):
    Config: ClassVar[type[BartConfig]] = BartConfig
    weight_map: ClassVar[str] = "paddock.weights.bart"
    reads_source: ClassVar[bool] = True
    logits_bias: ClassVar[bool] = True

    def __init__(self, cfg: BartConfig) -> None:
        self.model = BartModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)
        # Beside the head, not in it: a row, and mostly zeros.
        self.final_logits_bias = Parameter((cfg.vocab_size, 1)) if self.logits_bias else None

    def forward(self, step: Step) -> Tensor:
        logits = self.lm_head(self.model(step), step)
        if self.final_logits_bias is None:
            return logits
        return logits + F.cast(F.reshape(self.final_logits_bias.tensor), DType.F32)
