"""MPNet: BERT with biases by relative position, which all layers share (all-mpnet-base-v2)."""

from __future__ import annotations

from typing import ClassVar, Literal

from paddock.graph import DType, Module, Tensor
from paddock.graph import ops as F
from paddock.layers import (
    MLP,
    BidirectionalAttention,
    Embedding,
    LayerNorm,
    Linear,
    Pipeline,
    PositionEmbedding,
    PostNormBlock,
    RelativeBiases,
    Step,
    read_rows,
)
from paddock.models.config import Reads, Task
from paddock.models.roberta import ClassificationHead, RobertaConfig


class MPNetConfig(RobertaConfig):
    relative_attention_num_buckets: Literal[32] = 32  # transformers looks up 32, whatever it says


class MPNetEmbeddings(Module):
    def __init__(self, cfg: MPNetConfig) -> None:
        hidden, first = cfg.hidden_size, cfg.first_position
        self.word_embeddings = Embedding(cfg.vocab_size, hidden)
        self.position_embeddings = PositionEmbedding(
            cfg.max_position_embeddings - first, hidden, offset=first
        )
        self.LayerNorm = LayerNorm(hidden, eps=cfg.layer_norm_eps)

    def forward(self, step: Step) -> Tensor:
        x = self.word_embeddings(step.token_ids) + self.position_embeddings(step.positions)
        return self.LayerNorm(x)


class MPNetEncoder(Module):
    def __init__(self, cfg: MPNetConfig) -> None:
        self.relative_attention_bias = RelativeBiases(
            cfg.relative_attention_num_buckets, cfg.num_attention_heads
        )
        self.layer = Pipeline(
            mpnet_block(cfg, self.relative_attention_bias) for _ in range(cfg.num_hidden_layers)
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return self.layer(x, step)


def mpnet_block(cfg: MPNetConfig, biases: RelativeBiases) -> PostNormBlock:
    hidden, heads = cfg.hidden_size, cfg.num_attention_heads
    return PostNormBlock(
        hidden,
        BidirectionalAttention(hidden, heads=heads, head_dim=hidden // heads, biases=biases),
        MLP(hidden, cfg.intermediate_size, activation=cfg.hidden_act),
        eps=cfg.layer_norm_eps,
    )


class MPNetBody(Module):
    def __init__(self, cfg: MPNetConfig) -> None:
        self.embeddings = MPNetEmbeddings(cfg)
        self.encoder = MPNetEncoder(cfg)

    def forward(self, step: Step) -> Tensor:
        return self.encoder(self.embeddings(step), step)


class MPNetModel(Module):
    Config: ClassVar[type[MPNetConfig]] = MPNetConfig
    weight_map: ClassVar[str] = "paddock.weights.mpnet"
    task: ClassVar[Task] = "embed"

    def __init__(self, cfg: MPNetConfig) -> None:
        self.mpnet = MPNetBody(cfg)

    def forward(self, step: Step) -> Tensor:
        return read_rows(self.mpnet(step), step)


class MPNetForMaskedLM(MPNetModel):
    """As an encoder: its head, which guesses masked tokens, is left unread."""


class MPNetForSequenceClassification(Module):
    Config: ClassVar[type[MPNetConfig]] = MPNetConfig
    weight_map: ClassVar[str] = "paddock.weights.mpnet"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "first"

    def __init__(self, cfg: MPNetConfig) -> None:
        self.mpnet = MPNetBody(cfg)
        self.classifier = ClassificationHead(cfg.hidden_size, len(cfg.labels), "tanh")

    def forward(self, step: Step) -> Tensor:
        return self.classifier(self.mpnet(step), step)


class MPNetForTokenClassification(Module):
    Config: ClassVar[type[MPNetConfig]] = MPNetConfig
    weight_map: ClassVar[str] = "paddock.weights.mpnet"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "all"

    def __init__(self, cfg: MPNetConfig) -> None:
        self.mpnet = MPNetBody(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        return F.cast(self.classifier(F.gather(self.mpnet(step), step.logit_rows)), DType.F32)
