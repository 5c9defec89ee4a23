"""OPT: GPT-2's blocks with relu, in one size (350M) with norms behind and narrow embeddings."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Parameter, Tensor
from paddock.graph import ops as F
from paddock.layers import (
    MLP,
    Attention,
    Embedding,
    LayerNorm,
    Pipeline,
    PositionEmbedding,
    Step,
    VocabHead,
)
from paddock.models.config import (
    ActivationName,
    Context,
    Heads,
    Layers,
    ModelConfig,
    Size,
    check_heads,
)


class OPTConfig(ModelConfig):
    vocab_size: Size = 50_272
    hidden_size: Size = 768
    ffn_dim: Size = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    max_position_embeddings: Context = 2048
    word_embed_proj_dim: Size = Field(default_factory=lambda d: d["hidden_size"])
    activation_function: ActivationName = "relu"
    do_layer_norm_before: bool = True
    remove_final_layer_norm: bool = False
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    tie_word_embeddings: bool = True

    synonyms: ClassVar[dict[str, str]] = {"_remove_final_layer_norm": "remove_final_layer_norm"}
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"activation_dropout", "dropout", "init_std", "layerdrop"}
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads)
        return self

    def norm(self) -> LayerNorm:
        scale = self.layer_norm_elementwise_affine
        return LayerNorm(self.hidden_size, eps=1e-5, scale=scale)


class OPTBlock(Module):
    def __init__(self, cfg: OPTConfig) -> None:
        self.self_attn_layer_norm = cfg.norm()
        self.self_attn = Attention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            kv_heads=cfg.num_attention_heads,
            head_dim=cfg.hidden_size // cfg.num_attention_heads,
            rotary=None,
            bias=cfg.enable_bias,
            out_bias=cfg.enable_bias,
        )
        self.final_layer_norm = cfg.norm()
        self.mlp = MLP(
            cfg.hidden_size,
            cfg.ffn_dim,
            activation=cfg.activation_function,
            bias=cfg.enable_bias,
        )
        self.norm_first = cfg.do_layer_norm_before

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if self.norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), step)
            return x + self.mlp(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x, step))
        return self.final_layer_norm(x + self.mlp(x))


class Projection(Module):
    """x W^T, the same on every rank."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = Parameter((outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, inputs] -> [tokens, outputs]."""
        return F.linear(x, self.weight.tensor)


class OPTDecoder(Module):
    def __init__(self, cfg: OPTConfig) -> None:
        width, hidden = cfg.word_embed_proj_dim, cfg.hidden_size
        self.embed_tokens = Embedding(cfg.vocab_size, width)
        self.embed_positions = PositionEmbedding(cfg.max_position_embeddings, hidden, offset=2)
        self.project_in = Projection(width, hidden) if width != hidden else None
        self.layers = Pipeline(OPTBlock(cfg) for _ in range(cfg.num_hidden_layers))
        last = cfg.do_layer_norm_before and not cfg.remove_final_layer_norm
        self.final_layer_norm = cfg.norm() if last else None
        self.project_out = Projection(hidden, width) if width != hidden else None

    def forward(self, step: Step) -> Tensor:
        x = self.embed_tokens(step.token_ids)
        x = x if self.project_in is None else self.project_in(x)
        x = self.layers(x + self.embed_positions(step.positions), step)
        x = x if self.final_layer_norm is None else self.final_layer_norm(x)
        return x if self.project_out is None else self.project_out(x)


class OPTModel(Module):
    def __init__(self, cfg: OPTConfig) -> None:
        self.decoder = OPTDecoder(cfg)

    def forward(self, step: Step) -> Tensor:
        return self.decoder(step)


class OPTForCausalLM(Module):
    Config: ClassVar[type[OPTConfig]] = OPTConfig
    weight_map: ClassVar[str] = "paddock.weights.opt"

    def __init__(self, cfg: OPTConfig) -> None:
        self.model = OPTModel(cfg)
        self.lm_head = VocabHead(cfg.word_embed_proj_dim, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)
