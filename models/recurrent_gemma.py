"""RecurrentGemma: Griffin's gated recurrences in two of three layers, attention to a window in the
third, and Gemma's MLPs and norms.

De et al. 2024, arxiv.org/abs/2402.19427; Botev et al. 2024, arxiv.org/abs/2404.07839.
"""

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from paddock.graph import DType, Module, Tensor
from paddock.layers import Embedding, GatedMLP, GatedRecurrentBlock, Pipeline, Step, VocabHead
from paddock.models.config import Context, Heads, LayerTypes, Size
from paddock.models.gemma import GemmaConfig
from paddock.models.llama import LlamaConfig, attention


class RecurrentGemmaConfig(GemmaConfig):
    num_key_value_heads: Heads = Field(default_factory=lambda d: d["num_attention_heads"])
    head_dim: Heads = Field(
        default_factory=lambda d: d["hidden_size"] // d["num_attention_heads"],
        validate_default=True,
    )
    lru_width: Size | None = None
    attention_window_size: Context = 2048
    conv1d_width: Annotated[int, Field(gt=0, le=64)] = 4
    logits_soft_cap: float = Field(30.0, gt=0)
    block_types: LayerTypes = ("recurrent", "recurrent", "attention")
    partial_rotary_factor: float = Field(0.5, gt=0, le=1)
    max_position_embeddings: Context = 8192  # what it was trained on; nothing depends on it

    embeddings_scale_by_sqrt_dim: Literal[True] = True

    synonyms: ClassVar[dict[str, str]] = {"_block_types": "block_types"}
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            *("layer_types", "layers_block_type", "final_w_init_variance_scale"),
            "w_init_variance_scale",
        }
    )

    @model_validator(mode="after")
    def _blocks_are_known(self) -> Self:
        for kind in self.block_types:
            if kind not in ("recurrent", "attention"):
                raise ValueError(f"block_types: {kind[:80]!r} is no 'recurrent' or 'attention'")
        if not self.block_types:
            raise ValueError("block_types is empty; expected 'recurrent' or 'attention'")
        if self.channels % self.num_attention_heads:
            raise ValueError(
                f"lru_width {self.channels} is not a multiple of num_attention_heads"
                f" {self.num_attention_heads}"
            )
        return self

    @property
    def channels(self) -> int:
        """Of the recurrences."""
        return self.lru_width or self.hidden_size

    @property
    def rotary_part(self) -> float | None:
        return self.partial_rotary_factor

    @property
    def out_bias(self) -> bool:
        return True

    @property
    def embedding_scale(self) -> float:
        """In bf16, as its authors keep it whatever else is computed in."""
        return float(np.asarray(self.hidden_size**0.5, DType.BF16.numpy))

    @property
    def logit_cap(self) -> float | None:
        return self.logits_soft_cap

    def window(self, layer: int) -> int | None:
        return self.attention_window_size

    def attends(self, layer: int) -> bool:
        return self.block_types[layer % len(self.block_types)] == "attention"

    def mlp(self) -> Module:
        return GatedMLP(
            self.hidden_size,
            self.intermediate_size // 2,
            activation=self.hidden_activation,
            bias=True,
        )


class RecurrentGemmaBlock(Module):
    def __init__(self, cfg: RecurrentGemmaConfig, layer: int) -> None:
        self.temporal_pre_norm = cfg.norm()
        self.temporal_block: Module
        if cfg.attends(layer):
            self.temporal_block = attention(cfg, layer)
        else:
            self.temporal_block = GatedRecurrentBlock(
                cfg.hidden_size,
                channels=cfg.channels,
                blocks=cfg.num_attention_heads,
                width=cfg.conv1d_width,
                activation=cfg.hidden_activation,
            )
        self.channel_pre_norm = cfg.norm()
        self.mlp_block = cfg.mlp()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.temporal_block(self.temporal_pre_norm(x), step)
        return x + self.mlp_block(self.channel_pre_norm(x))


class RecurrentGemmaModel(Module):
    def __init__(self, cfg: RecurrentGemmaConfig) -> None:
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.hidden_size, scale=cfg.embedding_scale)
        self.layers = Pipeline(RecurrentGemmaBlock(cfg, i) for i in range(cfg.num_hidden_layers))
        self.final_norm = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.final_norm(self.layers(self.embed_tokens(step.token_ids), step))


class RecurrentGemmaForCausalLM(Module):
    Config: ClassVar[type[LlamaConfig]] = RecurrentGemmaConfig
    weight_map: ClassVar[str] = "paddock.weights.recurrent_gemma"

    def __init__(self, cfg: RecurrentGemmaConfig) -> None:
        self.model = RecurrentGemmaModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size, soft_cap=cfg.logit_cap)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step)
