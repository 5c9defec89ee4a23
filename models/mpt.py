"""MPT: blocks without biases, and for positions, ALiBi."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from paddock.graph import Module, Tensor
from paddock.layers import MLP, Attention, Embedding, LayerNorm, Pipeline, Step, VocabHead
from paddock.models.config import (
    Context,
    Eps,
    Heads,
    Layers,
    ModelConfig,
    Positive,
    Size,
    check_heads,
    nested,
)

# norm_type "low_precision_layernorm" is how it was trained, in the checkpoint's own type.
Norm = Literal["low_precision_layernorm", "layernorm"]


class MptAttentionConfig(ModelConfig):
    clip_qkv: Positive | None = None
    softmax_scale: Positive | None = None
    alibi: Literal[True] = True
    alibi_bias_max: Literal[8] = 8
    qk_ln: Literal[False] = False
    attn_type: Literal["multihead_attention"] = "multihead_attention"
    prefix_lm: Literal[False] = False

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"attn_pdrop", "attn_impl"}  # training; how its own code multiplied
    )


class MptConfig(ModelConfig):
    vocab_size: Size = 50_368
    hidden_size: Size = 2048
    num_hidden_layers: Layers = 24
    num_attention_heads: Heads = 16
    expansion_ratio: Size = 4
    max_position_embeddings: Context = 2048
    layer_norm_epsilon: Eps = 1e-5
    attn_config: Annotated[MptAttentionConfig, BeforeValidator(nested(MptAttentionConfig))] = (
        MptAttentionConfig()
    )
    no_bias: Literal[True] = True
    norm_type: Norm = "low_precision_layernorm"
    embedding_fraction: Literal[1] = 1
    tie_word_embeddings: bool = True

    synonyms: ClassVar[dict[str, str]] = {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "max_seq_len": "max_position_embeddings",
    }
    ignored: ClassVar[frozenset[str]] = frozenset(
        (
            "emb_pdrop",
            "init_config",
            "init_device",
            "learned_pos_emb",  # only without ALiBi
            "tokenizer_name",
            "verbose",
        )
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads)
        return self

    def norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=self.layer_norm_epsilon, bias=False)


class MptBlock(Module):
    def __init__(self, cfg: MptConfig) -> None:
        self.norm_1 = cfg.norm()
        self.attn = Attention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            kv_heads=cfg.num_attention_heads,
            head_dim=cfg.hidden_size // cfg.num_attention_heads,
            rotary=None,
            alibi=1.0,
            scale=cfg.attn_config.softmax_scale,
            clip=cfg.attn_config.clip_qkv,
        )
        self.norm_2 = cfg.norm()
        inner = cfg.expansion_ratio * cfg.hidden_size
        self.ffn = MLP(cfg.hidden_size, inner, activation="gelu", bias=False)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attn(self.norm_1(x), step)
        return x + self.ffn(self.norm_2(x))


class MptModel(Module):
    def __init__(self, cfg: MptConfig) -> None:
        self.wte = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.blocks = Pipeline(MptBlock(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm_f = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.norm_f(self.blocks(self.wte(step.token_ids), step))


class MptForCausalLM(Module):
    Config: ClassVar[type[MptConfig]] = MptConfig
    weight_map: ClassVar[str] = "paddock.weights.mpt"

    def __init__(self, cfg: MptConfig) -> None:
        self.transformer = MptModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.transformer(step), step)


class MPTForCausalLM(MptForCausalLM):
    """As the files of its authors name it."""
