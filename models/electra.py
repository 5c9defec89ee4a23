"""ELECTRA: BERT whose embeddings may be narrower than its layers."""

from __future__ import annotations

from typing import ClassVar

from paddock.graph import DType, Module, Tensor
from paddock.graph import ops as F
from paddock.layers import Linear, Step, read_rows
from paddock.models.bert import BertConfig, BertEmbeddings, BertEncoder
from paddock.models.config import Reads, Size, Task
from paddock.models.roberta import ClassificationHead


class ElectraConfig(BertConfig):
    narrow: Size = 128

    synonyms: ClassVar[dict[str, str]] = {"embedding_size": "narrow"}
    ignored: ClassVar[frozenset[str]] = BertConfig.ignored | {
        "summary_activation",
        "summary_last_dropout",
        "summary_type",
        "summary_use_proj",
        "generator_size",
    }

    @property
    def embedding_size(self) -> int:
        return self.narrow


class ElectraBody(Module):
    def __init__(self, cfg: ElectraConfig) -> None:
        self.embeddings = BertEmbeddings(cfg)
        self.is_projected = cfg.embedding_size != cfg.hidden_size
        if self.is_projected:
            self.embeddings_project = Linear(cfg.embedding_size, cfg.hidden_size)
        self.encoder = BertEncoder(cfg)

    def forward(self, step: Step) -> Tensor:
        x = self.embeddings(step)
        return self.encoder(self.embeddings_project(x) if self.is_projected else x, step)


class ElectraModel(Module):
    Config: ClassVar[type[ElectraConfig]] = ElectraConfig
    weight_map: ClassVar[str] = "paddock.weights.electra"
    task: ClassVar[Task] = "embed"

    def __init__(self, cfg: ElectraConfig) -> None:
        self.electra = ElectraBody(cfg)

    def forward(self, step: Step) -> Tensor:
        return read_rows(self.electra(step), step)


class ElectraForMaskedLM(ElectraModel):
    """The generator, as an encoder: its head is left unread."""


class ElectraForPreTraining(ElectraModel):
    """The discriminator, as an encoder: its head is left unread."""


class ElectraForSequenceClassification(Module):
    Config: ClassVar[type[ElectraConfig]] = ElectraConfig
    weight_map: ClassVar[str] = "paddock.weights.electra"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "first"

    def __init__(self, cfg: ElectraConfig) -> None:
        self.electra = ElectraBody(cfg)
        self.classifier = ClassificationHead(cfg.hidden_size, len(cfg.labels), "gelu")

    def forward(self, step: Step) -> Tensor:
        return self.classifier(self.electra(step), step)


class ElectraForTokenClassification(Module):
    Config: ClassVar[type[ElectraConfig]] = ElectraConfig
    weight_map: ClassVar[str] = "paddock.weights.electra"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "all"

    def __init__(self, cfg: ElectraConfig) -> None:
        self.electra = ElectraBody(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        return F.cast(self.classifier(F.gather(self.electra(step), step.logit_rows)), DType.F32)
