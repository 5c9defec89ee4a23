"""BERT, and what is of its build: MiniLM, BGE, E5, GTE, the ms-marco cross-encoders."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from paddock.graph import DType, Module, Tensor
from paddock.graph import ops as F
from paddock.layers import (
    ACTIVATIONS,
    MLP,
    BidirectionalAttention,
    Embedding,
    LayerNorm,
    Linear,
    Pipeline,
    PositionEmbedding,
    PostNormBlock,
    Step,
    read_rows,
)
from paddock.models.config import (
    Context,
    Heads,
    LabelledConfig,
    Layers,
    Reads,
    Size,
    Task,
)


class BertConfig(LabelledConfig):
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Heads
    intermediate_size: Size
    hidden_act: str = "gelu"
    max_position_embeddings: Context = 512
    type_vocab_size: Size = 2
    layer_norm_eps: float = Field(1e-12, ge=0, lt=1)
    position_embedding_type: Literal["absolute"] = "absolute"

    # Of the multilingual checkpoint: a pooler that was never released.
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "classifier_dropout",
            "directionality",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        }
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads"
                f" {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act {self.hidden_act[:80]!r} is none of {', '.join(ACTIVATIONS)}"
            )
        return self

    @property
    def first_position(self) -> int:
        """The row of the position table that belongs to a sequence's first token."""
        return 0

    @property
    def embedding_size(self) -> int:
        return self.hidden_size


class BertEmbeddings(Module):
    """The sum of a row each for token, position and segment, normalised."""

    def __init__(self, cfg: BertConfig) -> None:
        size = cfg.embedding_size
        self.word_embeddings = Embedding(cfg.vocab_size, size)
        first = cfg.first_position
        self.position_embeddings = PositionEmbedding(
            cfg.max_position_embeddings - first, size, offset=first
        )
        self.token_type_embeddings = Embedding(cfg.type_vocab_size, size)
        self.LayerNorm = LayerNorm(size, eps=cfg.layer_norm_eps)

    def forward(self, step: Step) -> Tensor:
        x = self.word_embeddings(step.token_ids) + self.token_type_embeddings(step.token_types)
        return self.LayerNorm(x + self.position_embeddings(step.positions))


class BertEncoder(Module):
    def __init__(self, cfg: BertConfig) -> None:
        self.layer = Pipeline(bert_block(cfg) for _ in range(cfg.num_hidden_layers))

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return self.layer(x, step)


def bert_block(cfg: BertConfig) -> PostNormBlock:
    hidden, heads = cfg.hidden_size, cfg.num_attention_heads
    return PostNormBlock(
        hidden,
        BidirectionalAttention(hidden, heads=heads, head_dim=hidden // heads),
        MLP(hidden, cfg.intermediate_size, activation=cfg.hidden_act),
        eps=cfg.layer_norm_eps,
    )


class BertBody(Module):
    def __init__(self, cfg: BertConfig) -> None:
        self.embeddings = BertEmbeddings(cfg)
        self.encoder = BertEncoder(cfg)

    def forward(self, step: Step) -> Tensor:
        return self.encoder(self.embeddings(step), step)


class BertPooler(Module):
    """What pre-training put on the first token; classifiers stand on it."""

    def __init__(self, cfg: BertConfig) -> None:
        self.dense = Linear(cfg.hidden_size, cfg.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.activation(self.dense(x), "tanh")


class BertModel(Module):
    """The last layer's hidden states."""

    Config: ClassVar[type[BertConfig]] = BertConfig
    weight_map: ClassVar[str] = "paddock.weights.bert"
    task: ClassVar[Task] = "embed"

    def __init__(self, cfg: BertConfig) -> None:
        self.bert = BertBody(cfg)

    def forward(self, step: Step) -> Tensor:
        return read_rows(self.bert(step), step)


class BertForMaskedLM(BertModel):
    """As an encoder: its head, which guesses masked tokens, is left unread."""


class BertForPreTraining(BertModel):
    """As an encoder: both of its heads are left unread."""


class BertPooledBody(BertBody):
    def __init__(self, cfg: BertConfig) -> None:
        super().__init__(cfg)
        self.pooler = BertPooler(cfg)

    def forward(self, step: Step) -> Tensor:
        return self.pooler(F.gather(super().forward(step), step.logit_rows))


class BertForSequenceClassification(Module):
    """A label for a text, or a score for a pair of texts."""

    Config: ClassVar[type[BertConfig]] = BertConfig
    weight_map: ClassVar[str] = "paddock.weights.bert"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "first"

    def __init__(self, cfg: BertConfig) -> None:
        self.bert = BertPooledBody(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        return F.cast(self.classifier(self.bert(step)), DType.F32)


class BertForTokenClassification(Module):
    """A label for each token."""

    Config: ClassVar[type[BertConfig]] = BertConfig
    weight_map: ClassVar[str] = "paddock.weights.bert"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "all"

    def __init__(self, cfg: BertConfig) -> None:
        self.bert = BertBody(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        return F.cast(self.classifier(F.gather(self.bert(step), step.logit_rows)), DType.F32)
