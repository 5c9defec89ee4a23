"""DBRX: fine-grained experts, four of sixteen, and attention whose queries, keys and values are
bounded.

Databricks 2024, databricks.com/blog/introducing-dbrx-new-state-art-open-llm.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from paddock.graph import Module, Tensor
from paddock.graph.ops import Route
from paddock.layers import (
    Attention,
    Embedding,
    Experts,
    LayerNorm,
    MixtureOfExperts,
    Pipeline,
    Rotary,
    Router,
    Step,
    VocabHead,
)
from paddock.models.config import (
    ActivationName,
    Context,
    Heads,
    Layers,
    ModelConfig,
    Positive,
    Size,
    check_heads,
    nested,
    rotary_scaling,
)

EPS = 1e-5  # LayerNorm's own; no field says it


class DbrxAttentionConfig(ModelConfig):
    clip_qkv: Positive | None = None
    kv_n_heads: Heads = 1
    rope_theta: float | None = None

    ignored: ClassVar[frozenset[str]] = frozenset({"attn_pdrop"})


class DbrxActivation(ModelConfig):
    name: ActivationName = "silu"


class DbrxExpertsConfig(ModelConfig):
    ffn_act_fn: Annotated[DbrxActivation, BeforeValidator(nested(DbrxActivation))] = (
        DbrxActivation()
    )
    ffn_hidden_size: Size = 3584
    moe_num_experts: Size = 4
    moe_top_k: Size = 1
    moe_normalize_expert_weights: Literal[1] | None = 1  # the order of the norm they are divided by

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"hidden_size", "moe_jitter_eps", "moe_loss_weight", "uniform_expert_assignment"}
    )


class DbrxConfig(ModelConfig):
    vocab_size: Size = 32_000
    hidden_size: Size = 2048
    num_hidden_layers: Layers = 24
    num_attention_heads: Heads = 16
    num_key_value_heads: Heads | None = None  # attn_config's, again
    max_position_embeddings: Context = 2048
    attn_config: Annotated[DbrxAttentionConfig, BeforeValidator(nested(DbrxAttentionConfig))] = (
        DbrxAttentionConfig()
    )
    ffn_config: Annotated[DbrxExpertsConfig, BeforeValidator(nested(DbrxExpertsConfig))] = (
        DbrxExpertsConfig()
    )
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: Literal[False] = False

    synonyms: ClassVar[dict[str, str]] = {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "max_seq_len": "max_position_embeddings",
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"emb_pdrop", "output_router_logits"})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kv_heads = self.attn_config.kv_n_heads
        check_heads(self.hidden_size, self.num_attention_heads, kv_heads)
        if self.num_key_value_heads not in (None, kv_heads):
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}, attn_config's kv_n_heads"
                f" {kv_heads}"
            )
        chosen, experts = self.ffn_config.moe_top_k, self.ffn_config.moe_num_experts
        if chosen > experts:
            raise ValueError(f"moe_top_k {chosen} is more than moe_num_experts {experts}")
        self.rotary()
        return self

    def rotary(self) -> Rotary:
        scaling = rotary_scaling(
            self.rope_parameters,
            None,
            theta=self.attn_config.rope_theta,
            default_theta=10_000.0,
            max_position_embeddings=self.max_position_embeddings,
        )
        return Rotary(self.hidden_size // self.num_attention_heads, scaling)

    def norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=EPS, bias=False)


class DbrxNormAttentionNorm(Module):
    def __init__(self, cfg: DbrxConfig) -> None:
        self.norm_1 = cfg.norm()
        self.attn = Attention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            kv_heads=cfg.attn_config.kv_n_heads,
            head_dim=cfg.hidden_size // cfg.num_attention_heads,
            rotary=cfg.rotary(),
            clip=cfg.attn_config.clip_qkv,
        )
        self.norm_2 = cfg.norm()

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The residual stream behind attention, and what the experts read of it."""
        x = x + self.attn(self.norm_1(x), step)
        return x, self.norm_2(x)


class DbrxBlock(Module):
    def __init__(self, cfg: DbrxConfig) -> None:
        ffn = cfg.ffn_config
        normalized = ffn.moe_normalize_expert_weights is not None
        self.norm_attn_norm = DbrxNormAttentionNorm(cfg)
        self.ffn = MixtureOfExperts(
            Router(
                cfg.hidden_size, ffn.moe_num_experts, Route(ffn.moe_top_k, normalize=normalized)
            ),
            Experts(
                ffn.moe_num_experts,
                cfg.hidden_size,
                ffn.ffn_hidden_size,
                activation=ffn.ffn_act_fn.name,
            ),
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x, y = self.norm_attn_norm(x, step)
        return x + self.ffn(y)


class DbrxModel(Module):
    def __init__(self, cfg: DbrxConfig) -> None:
        self.wte = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.blocks = Pipeline(DbrxBlock(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm_f = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.norm_f(self.blocks(self.wte(step.token_ids), step))


class DbrxForCausalLM(Module):
    Config: ClassVar[type[DbrxConfig]] = DbrxConfig
    weight_map: ClassVar[str] = "paddock.weights.dbrx"

    def __init__(self, cfg: DbrxConfig) -> None:
        self.transformer = DbrxModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.transformer(step), step)
