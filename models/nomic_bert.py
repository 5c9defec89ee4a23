"""Nomic's BERT: rotary positions, a gated MLP, no biases (nomic-embed-text)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import DType, GraphError, Module, Tensor
from paddock.graph import ops as F
from paddock.layers import (
    ACTIVATIONS,
    BidirectionalAttention,
    Embedding,
    GatedMLP,
    LayerNorm,
    Linear,
    Pipeline,
    PostNormBlock,
    Rotary,
    Step,
    read_rows,
)
from paddock.models.bert import BertConfig, BertPooler
from paddock.models.config import Context, Heads, Reads, Size, Task, rotary_scaling


class NomicBertConfig(BertConfig):
    """As transformers writes it, or as the first checkpoints have it, in GPT-2's words."""

    vocab_size: Size = 30_528
    hidden_act: str = "silu"
    activation_function: Literal["swiglu"] | None = None  # what the MLP is anyway
    max_position_embeddings: Context = 2048
    head_dim: Heads = Field(
        default_factory=lambda d: d["hidden_size"] // d["num_attention_heads"],
        validate_default=True,
    )
    rope_parameters: dict[str, Any] | None = None
    rotary_emb_base: float | None = None
    rotary_emb_fraction: float = Field(1.0, ge=1, le=1)

    synonyms: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
    }
    ignored: ClassVar[frozenset[str]] = BertConfig.ignored | {
        "attn_pdrop",
        "dense_seq_output",
        "expert_choice_router",
        "fused_bias_fc",
        "fused_dropout_add_ln",
        "max_trained_positions",
        "pad_vocab_size_multiple",
        "scale_attn_weights",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "use_flash_attn",
        "use_xentropy",
    }

    @model_validator(mode="after")
    def _turns(self) -> Self:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act[:80]!r} is not known")
        try:
            self.rotary()
        except GraphError as error:
            raise ValueError(f"rope_parameters: {error}") from None
        return self

    def rotary(self) -> Rotary:
        scaling = rotary_scaling(
            self.rope_parameters,
            None,
            theta=self.rotary_emb_base,
            default_theta=1000.0,
            max_position_embeddings=self.max_position_embeddings,
        )
        return Rotary(self.head_dim, scaling)


class NomicBertEmbeddings(Module):
    def __init__(self, cfg: NomicBertConfig) -> None:
        self.word_embeddings = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.token_type_embeddings = Embedding(cfg.type_vocab_size, cfg.hidden_size)
        self.LayerNorm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def forward(self, step: Step) -> Tensor:
        x = self.word_embeddings(step.token_ids)
        return self.LayerNorm(x + self.token_type_embeddings(step.token_types))


def nomic_block(cfg: NomicBertConfig) -> PostNormBlock:
    return PostNormBlock(
        cfg.hidden_size,
        BidirectionalAttention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            head_dim=cfg.head_dim,
            rotary=cfg.rotary(),
            bias=False,
            out_bias=False,
        ),
        GatedMLP(cfg.hidden_size, cfg.intermediate_size, activation=cfg.hidden_act),
        eps=cfg.layer_norm_eps,
    )


class NomicBertBody(Module):
    def __init__(self, cfg: NomicBertConfig) -> None:
        self.embeddings = NomicBertEmbeddings(cfg)
        self.layers = Pipeline(nomic_block(cfg) for _ in range(cfg.num_hidden_layers))

    def forward(self, step: Step) -> Tensor:
        return self.layers(self.embeddings(step), step)


class NomicBertModel(Module):
    Config: ClassVar[type[NomicBertConfig]] = NomicBertConfig
    weight_map: ClassVar[str] = "paddock.weights.nomic_bert"
    task: ClassVar[Task] = "embed"

    def __init__(self, cfg: NomicBertConfig) -> None:
        self.nomic_bert = NomicBertBody(cfg)

    def forward(self, step: Step) -> Tensor:
        return read_rows(self.nomic_bert(step), step)


class NomicBertForMaskedLM(NomicBertModel):
    """As an encoder: its head, which guesses masked tokens, is left unread."""


class NomicBertPooledBody(NomicBertBody):
    def __init__(self, cfg: NomicBertConfig) -> None:
        super().__init__(cfg)
        self.pooler = BertPooler(cfg)

    def forward(self, step: Step) -> Tensor:
        return self.pooler(F.gather(super().forward(step), step.logit_rows))


class NomicBertForSequenceClassification(Module):
    Config: ClassVar[type[NomicBertConfig]] = NomicBertConfig
    weight_map: ClassVar[str] = "paddock.weights.nomic_bert"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "first"

    def __init__(self, cfg: NomicBertConfig) -> None:
        self.nomic_bert = NomicBertPooledBody(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        return F.cast(self.classifier(self.nomic_bert(step)), DType.F32)


class NomicBertForTokenClassification(Module):
    Config: ClassVar[type[NomicBertConfig]] = NomicBertConfig
    weight_map: ClassVar[str] = "paddock.weights.nomic_bert"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "all"

    def __init__(self, cfg: NomicBertConfig) -> None:
        self.nomic_bert = NomicBertBody(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        x = F.gather(self.nomic_bert(step), step.logit_rows)
        return F.cast(self.classifier(x), DType.F32)
