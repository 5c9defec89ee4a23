"""T5, FLAN-T5 and T5 v1.1: an encoder and a decoder with biases by relative position.

Raffel et al. 2019, arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, ModuleList, Tensor
from paddock.layers import (
    ACTIVATIONS,
    MLP,
    Attention,
    BidirectionalAttention,
    CrossAttention,
    Embedding,
    GatedMLP,
    RelativeBiases,
    RMSNorm,
    Stack,
    Step,
    VocabHead,
)
from paddock.models.config import Context, EncoderDecoderConfig, Heads, Layers, Size


class T5Config(EncoderDecoderConfig):
    vocab_size: Size = 32128
    hidden_size: Size = 512
    head_dim: Heads = 64
    intermediate_size: Size = 2048
    num_hidden_layers: Layers = 6
    num_decoder_layers: Layers = Field(default_factory=lambda d: d["num_hidden_layers"])
    num_attention_heads: Heads = 8
    relative_attention_num_buckets: int = Field(32, ge=4, le=2**12)
    relative_attention_max_distance: int = Field(128, gt=0, le=2**20)
    layer_norm_epsilon: float = Field(1e-6, ge=0, lt=1)
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    max_position_embeddings: Context = 512

    synonyms: ClassVar[Mapping[str, str]] = {
        "d_model": "hidden_size",
        "d_kv": "head_dim",
        "d_ff": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    }
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            *("classifier_dropout", "dense_act_fn", "dropout_rate", "gradient_checkpointing"),
            *("initializer_factor", "is_decoder", "is_encoder_decoder", "is_gated_act"),
            *("output_past", "scale_decoder_outputs"),
        }
    )

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"feed_forward_proj {self.feed_forward_proj[:80]!r} is none of"
                f" {', '.join(ACTIVATIONS)}, nor one of these behind 'gated-'"
            )
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if buckets % 2 or distance <= buckets // 2:
            raise ValueError(
                f"relative_attention_num_buckets {buckets} is odd, or too many for"
                f" relative_attention_max_distance {distance}"
            )
        return self

    @property
    def gated(self) -> bool:
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """`gated-gelu` is the tanh approximation, whatever `gelu` is elsewhere."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else name


class T5LayerSelfAttention(Module):
    """`biases` None: this layer owns the table that those after it share."""

    def __init__(self, cfg: T5Config, biases: RelativeBiases | None, *, causal: bool) -> None:
        if biases is None:
            biases = self.relative_attention_bias = RelativeBiases(
                cfg.relative_attention_num_buckets,
                cfg.num_attention_heads,
                max_distance=cfg.relative_attention_max_distance,
            )
        hidden, heads, size = cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim
        if causal:
            self.SelfAttention: Attention | BidirectionalAttention = Attention(
                hidden,
                heads=heads,
                kv_heads=heads,
                head_dim=size,
                rotary=None,
                scale=1.0,
                biases=biases,
            )
        else:
            self.SelfAttention = BidirectionalAttention(
                hidden,
                heads=heads,
                head_dim=size,
                scale=1.0,
                biases=biases,
                bias=False,
                out_bias=False,
            )
        self.layer_norm = RMSNorm(hidden, eps=cfg.layer_norm_epsilon)
        self.biases = (biases,)  # in a tuple: only the first layer's child

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), step)


class T5LayerCrossAttention(Module):
    def __init__(self, cfg: T5Config, beside: Attention) -> None:
        self.EncDecAttention = CrossAttention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            head_dim=cfg.head_dim,
            beside=beside,
            scale=1.0,
            bias=False,
        )
        self.layer_norm = RMSNorm(cfg.hidden_size, eps=cfg.layer_norm_epsilon)

    def forward(self, x: Tensor, source: Tensor, step: Step) -> Tensor:
        return x + self.EncDecAttention(self.layer_norm(x), source, step)


class T5LayerFF(Module):
    def __init__(self, cfg: T5Config) -> None:
        kind = GatedMLP if cfg.gated else MLP
        self.DenseReluDense = kind(
            cfg.hidden_size, cfg.intermediate_size, activation=cfg.activation, bias=False
        )
        self.layer_norm = RMSNorm(cfg.hidden_size, eps=cfg.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class T5Block(Module):
    """Attention, in a decoder cross-attention, and an MLP, under the numbers they are saved by."""

    def __init__(self, cfg: T5Config, biases: RelativeBiases | None, *, causal: bool) -> None:
        own = T5LayerSelfAttention(cfg, biases, causal=causal)
        self.layer: ModuleList[Module] = ModuleList([own, T5LayerFF(cfg)])
        if isinstance(own.SelfAttention, Attention):
            self.layer = ModuleList(
                [own, T5LayerCrossAttention(cfg, own.SelfAttention), T5LayerFF(cfg)]
            )
        self.biases = own.biases

    def forward(self, x: Tensor, step: Step, source: Tensor | None = None) -> Tensor:
        """`source` [source tokens, hidden]: what a decoder reads beside its own tokens."""
        own, *cross, mlp = self.layer
        x = own(x, step)
        for attention in cross:
            x = attention(x, source, step)
        return mlp(x)


class T5Stack(Module):
    """The encoder, or the decoder; its first block's biases are those of all."""

    def __init__(self, cfg: T5Config, layers: int, *, causal: bool) -> None:
        first = T5Block(cfg, None, causal=causal)
        (biases,) = first.biases
        others = (T5Block(cfg, biases, causal=causal) for _ in range(layers - 1))
        self.block = Stack([first, *others])
        self.final_layer_norm = RMSNorm(cfg.hidden_size, eps=cfg.layer_norm_epsilon)

    def forward(self, x: Tensor, step: Step, source: Tensor | None = None) -> Tensor:
        return self.final_layer_norm(self.block(x, step, source))


class T5ForConditionalGeneration(Module):
    Config: ClassVar[type[T5Config]] = T5Config
    weight_map: ClassVar[str] = "paddock.weights.t5"
    reads_source: ClassVar[bool] = True

    def __init__(self, cfg: T5Config) -> None:
        self.shared = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.encoder = T5Stack(cfg, cfg.num_hidden_layers, causal=False)
        self.decoder = T5Stack(cfg, cfg.num_decoder_layers, causal=True)
        # What ties its head to its embedding keeps that in scale: a fact of the code it began in.
        scale = cfg.hidden_size**-0.5 if cfg.tie_word_embeddings else 1.0
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size, scale=scale)

    def forward(self, step: Step) -> Tensor:
        source = self.encoder(self.shared(step.source_ids), step.source)
        return self.lm_head(self.decoder(self.shared(step.token_ids), step, source), step)
