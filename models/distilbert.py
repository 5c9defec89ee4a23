"""DistilBERT: BERT with half the layers, and no segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from paddock.graph import DType, Module, Tensor
from paddock.graph import ops as F
from paddock.layers import (
    Embedding,
    LayerNorm,
    Linear,
    Pipeline,
    PositionEmbedding,
    Step,
    read_rows,
)
from paddock.models.bert import BertConfig, bert_block
from paddock.models.config import Reads, Task


class DistilBertConfig(BertConfig):
    sinusoidal_pos_embds: bool = False  # how the table was made; it is stored either way

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "qa_dropout", "seq_classif_dropout", "tie_weights_", "output_past"}
    )
    synonyms: ClassVar[Mapping[str, str]] = {
        "dim": "hidden_size",
        "hidden_dim": "intermediate_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "activation": "hidden_act",
    }


class DistilBertEmbeddings(Module):
    def __init__(self, cfg: DistilBertConfig) -> None:
        self.word_embeddings = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.position_embeddings = PositionEmbedding(cfg.max_position_embeddings, cfg.hidden_size)
        self.LayerNorm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def forward(self, step: Step) -> Tensor:
        x = self.word_embeddings(step.token_ids) + self.position_embeddings(step.positions)
        return self.LayerNorm(x)


class DistilBertTransformer(Module):
    def __init__(self, cfg: DistilBertConfig) -> None:
        self.layer = Pipeline(bert_block(cfg) for _ in range(cfg.num_hidden_layers))

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return self.layer(x, step)


class DistilBertBody(Module):
    def __init__(self, cfg: DistilBertConfig) -> None:
        self.embeddings = DistilBertEmbeddings(cfg)
        self.transformer = DistilBertTransformer(cfg)

    def forward(self, step: Step) -> Tensor:
        return self.transformer(self.embeddings(step), step)


class DistilBertModel(Module):
    Config: ClassVar[type[DistilBertConfig]] = DistilBertConfig
    weight_map: ClassVar[str] = "paddock.weights.distilbert"
    task: ClassVar[Task] = "embed"

    def __init__(self, cfg: DistilBertConfig) -> None:
        self.distilbert = DistilBertBody(cfg)

    def forward(self, step: Step) -> Tensor:
        return read_rows(self.distilbert(step), step)


class DistilBertForMaskedLM(DistilBertModel):
    """As an encoder: its head, which guesses masked tokens, is left unread."""


class DistilBertForSequenceClassification(Module):
    Config: ClassVar[type[DistilBertConfig]] = DistilBertConfig
    weight_map: ClassVar[str] = "paddock.weights.distilbert"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "first"

    def __init__(self, cfg: DistilBertConfig) -> None:
        self.distilbert = DistilBertBody(cfg)
        self.pre_classifier = Linear(cfg.hidden_size, cfg.hidden_size)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        x = self.pre_classifier(F.gather(self.distilbert(step), step.logit_rows))
        return F.cast(self.classifier(F.activation(x, "relu")), DType.F32)


class DistilBertForTokenClassification(Module):
    Config: ClassVar[type[DistilBertConfig]] = DistilBertConfig
    weight_map: ClassVar[str] = "paddock.weights.distilbert"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "all"

    def __init__(self, cfg: DistilBertConfig) -> None:
        self.distilbert = DistilBertBody(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        x = F.gather(self.distilbert(step), step.logit_rows)
        return F.cast(self.classifier(x), DType.F32)
