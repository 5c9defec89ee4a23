"""RoBERTa: BERT trained longer, whose table of positions begins behind the padding token's."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from paddock.graph import DType, Module, Tensor
from paddock.graph import ops as F
from paddock.layers import Linear, Step, activate, read_rows
from paddock.models.bert import BertBody, BertConfig
from paddock.models.config import Reads, Task


class RobertaConfig(BertConfig):
    # How many rows of the position table stand before the first position's, less one.
    pad_token_id: int = Field(1, ge=0, lt=2**16)

    @property
    def first_position(self) -> int:
        return self.pad_token_id + 1

    @property
    def longest(self) -> int:
        return self.max_position_embeddings - self.first_position


class ClassificationHead(Module):
    """Two layers on the first token's hidden state."""

    def __init__(self, hidden: int, labels: int, activation: str) -> None:
        self.dense = Linear(hidden, hidden)
        self.out_proj = Linear(hidden, labels)
        self.activation = activation

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> f32 [rows, labels]."""
        y = activate(self.dense(F.gather(x, step.logit_rows)), self.activation)
        return F.cast(self.out_proj(y), DType.F32)


class RobertaModel(Module):
    Config: ClassVar[type[BertConfig]] = RobertaConfig
    weight_map: ClassVar[str] = "paddock.weights.roberta"
    task: ClassVar[Task] = "embed"

    def __init__(self, cfg: RobertaConfig) -> None:
        self.roberta = BertBody(cfg)

    def forward(self, step: Step) -> Tensor:
        return read_rows(self.roberta(step), step)


class RobertaForMaskedLM(RobertaModel):
    """As an encoder: its head, which guesses masked tokens, is left unread."""


class RobertaForSequenceClassification(Module):
    Config: ClassVar[type[BertConfig]] = RobertaConfig
    weight_map: ClassVar[str] = "paddock.weights.roberta"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "first"

    def __init__(self, cfg: RobertaConfig) -> None:
        self.roberta = BertBody(cfg)
        self.classifier = ClassificationHead(cfg.hidden_size, len(cfg.labels), "tanh")

    def forward(self, step: Step) -> Tensor:
        return self.classifier(self.roberta(step), step)


class RobertaForTokenClassification(Module):
    Config: ClassVar[type[BertConfig]] = RobertaConfig
    weight_map: ClassVar[str] = "paddock.weights.roberta"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "all"

    def __init__(self, cfg: RobertaConfig) -> None:
        self.roberta = BertBody(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        return F.cast(self.classifier(F.gather(self.roberta(step), step.logit_rows)), DType.F32)
