"""ModernBERT: pre-norm blocks with rotary positions, most of which see their neighbours alone."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

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
    Rotary,
    Step,
    activate,
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
    check_layers,
    rotary_scaling,
)


class ModernBertConfig(LabelledConfig):
    vocab_size: Size = 50_368
    hidden_size: Size = 768
    intermediate_size: Size = 1152
    num_hidden_layers: Layers = 22
    num_attention_heads: Heads = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: Context = 8192
    norm_eps: float = Field(1e-5, ge=0, lt=1)
    layer_norm_eps: float | None = None  # an older name, which the first checkpoints have beside
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    layer_types: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    global_attn_every_n_layers: Size = 3
    local_attention: Size = 128
    rope_parameters: dict[str, dict[str, Any] | None] | None = None
    global_rope_theta: float | None = None
    local_rope_theta: float | None = None
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_bias: bool = False
    classifier_activation: str = "gelu"

    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "classifier_dropout",
            "decoder_bias",
            "deterministic_flash_attn",
            "embedding_dropout",
            "initializer_cutoff_factor",
            "mlp_dropout",
            "position_embedding_type",
            "reference_compile",
            "repad_logits_with_grad",
            "sparse_pred_ignore_index",
            "sparse_prediction",
            "tie_word_embeddings",
        }
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads"
                f" {self.num_attention_heads}"
            )
        for name in (self.hidden_activation, self.classifier_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"{name[:80]!r} is none of {', '.join(ACTIVATIONS)}")
        check_layers(self.layer_types, self.num_hidden_layers, self.local_attention)
        try:
            for layer in range(min(self.num_hidden_layers, 2)):
                self.rotary(layer)
        except GraphError as error:
            raise ValueError(f"rope_parameters: {error}") from None
        return self

    def is_local(self, layer: int) -> bool:
        """Whether tokens of this layer see their neighbours alone."""
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return layer % self.global_attn_every_n_layers != 0

    def rotary(self, layer: int) -> Rotary:
        """Local layers turn faster: their positions are near one another."""
        local = self.is_local(layer)
        kind = "sliding_attention" if local else "full_attention"
        scaling = rotary_scaling(
            (self.rope_parameters or {}).get(kind),
            None,
            theta=self.local_rope_theta if local else self.global_rope_theta,
            default_theta=10_000.0 if local else 160_000.0,
            max_position_embeddings=self.max_position_embeddings,
        )
        return Rotary(self.hidden_size // self.num_attention_heads, scaling)

    def norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=self.norm_eps, bias=self.norm_bias)


class ModernBertEmbeddings(Module):
    def __init__(self, cfg: ModernBertConfig) -> None:
        self.tok_embeddings = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.norm = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.norm(self.tok_embeddings(step.token_ids))


class ModernBertBlock(Module):
    def __init__(self, cfg: ModernBertConfig, layer: int) -> None:
        self.is_first = layer == 0  # the embeddings are normalised already
        if not self.is_first:
            self.attn_norm = cfg.norm()
        self.attn = BidirectionalAttention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            head_dim=cfg.hidden_size // cfg.num_attention_heads,
            rotary=cfg.rotary(layer),
            window=cfg.local_attention // 2 if cfg.is_local(layer) else None,
            bias=cfg.attention_bias,
            out_bias=cfg.attention_bias,
        )
        self.mlp_norm = cfg.norm()
        self.mlp = GatedMLP(
            cfg.hidden_size,
            cfg.intermediate_size,
            activation=cfg.hidden_activation,
            bias=cfg.mlp_bias,
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attn(x if self.is_first else self.attn_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class ModernBertBody(Module):
    def __init__(self, cfg: ModernBertConfig) -> None:
        self.embeddings = ModernBertEmbeddings(cfg)
        self.layers = Pipeline(ModernBertBlock(cfg, i) for i in range(cfg.num_hidden_layers))
        self.final_norm = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.final_norm(self.layers(self.embeddings(step), step))


class ModernBertHead(Module):
    """What stands before a classifier."""

    def __init__(self, cfg: ModernBertConfig) -> None:
        self.dense = Linear(cfg.hidden_size, cfg.hidden_size, bias=cfg.classifier_bias)
        self.norm = cfg.norm()
        self.activation = cfg.classifier_activation

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(activate(self.dense(x), self.activation))


class ModernBertModel(Module):
    Config: ClassVar[type[ModernBertConfig]] = ModernBertConfig
    weight_map: ClassVar[str] = "paddock.weights.modernbert"
    task: ClassVar[Task] = "embed"

    def __init__(self, cfg: ModernBertConfig) -> None:
        self.model = ModernBertBody(cfg)

    def forward(self, step: Step) -> Tensor:
        return read_rows(self.model(step), step)


class ModernBertForMaskedLM(ModernBertModel):
    """As an encoder: its head, which guesses masked tokens, is left unread."""


class ModernBertForSequenceClassification(Module):
    Config: ClassVar[type[ModernBertConfig]] = ModernBertConfig
    weight_map: ClassVar[str] = "paddock.weights.modernbert"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "first"

    def __init__(self, cfg: ModernBertConfig) -> None:
        self.model = ModernBertBody(cfg)
        self.head = ModernBertHead(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))
        self.pooling = cfg.classifier_pooling

    def forward(self, step: Step) -> Tensor:
        x = self.model(step)
        if self.pooling == "mean":
            x = F.sequence_mean(x, step.sequence_starts)
        y = self.head(F.gather(x, step.logit_rows))
        return F.cast(self.classifier(y), DType.F32)


class ModernBertForTokenClassification(Module):
    Config: ClassVar[type[ModernBertConfig]] = ModernBertConfig
    weight_map: ClassVar[str] = "paddock.weights.modernbert"
    task: ClassVar[Task] = "classify"
    reads: ClassVar[Reads] = "all"

    def __init__(self, cfg: ModernBertConfig) -> None:
        self.model = ModernBertBody(cfg)
        self.head = ModernBertHead(cfg)
        self.classifier = Linear(cfg.hidden_size, len(cfg.labels))

    def forward(self, step: Step) -> Tensor:
        y = self.head(F.gather(self.model(step), step.logit_rows))
        return F.cast(self.classifier(y), DType.F32)
