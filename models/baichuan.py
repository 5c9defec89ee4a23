"""Baichuan and Baichuan 2: Llama with q, k and v in one; the 13B have ALiBi in place of a rotary.

Baichuan 2 divides each row of its head by its length, which config.json does not say; as in vLLM,
the vocabulary that only Baichuan 2 has tells it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from paddock.graph import Module, Tensor
from paddock.layers import Attention, Step, VocabHead
from paddock.models.config import Context
from paddock.models.llama import LlamaBlock, LlamaConfig, LlamaForCausalLM

BAICHUAN2_VOCABULARY = 125_696


class BaichuanConfig(LlamaConfig):
    # The 13B's files have model_max_length alone.
    max_position_embeddings: Context = 4096
    model_max_length: Context = 4096
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    ignored: ClassVar[frozenset[str]] = frozenset({"z_loss_weight", "_from_model_config"})

    @property
    def has_alibi(self) -> bool:
        return "max_position_embeddings" not in self.model_fields_set

    def has_rotary(self, layer: int) -> bool:
        return not self.has_alibi


class BaichuanBlock(LlamaBlock):
    self_attn: Attention

    def __init__(self, cfg: BaichuanConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        self.self_attn.alibi = 1.0 if cfg.has_alibi else None


class NormHead(Module):
    """A head whose rows are used at length 1: the weight map divides them."""

    def __init__(self, size: int, vocab: int) -> None:
        self.unit = VocabHead(size, vocab)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, size] -> f32 [rows, vocab]."""
        return self.unit(x, step)


class BaichuanForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = BaichuanConfig
    Block: ClassVar[type[BaichuanBlock]] = BaichuanBlock
    weight_map: ClassVar[str] = "paddock.weights.baichuan"

    def __init__(self, cfg: BaichuanConfig) -> None:
        super().__init__(cfg)
        if cfg.vocab_size == BAICHUAN2_VOCABULARY:
            self.lm_head = NormHead(cfg.hidden_size, cfg.vocab_size)


class BaiChuanForCausalLM(BaichuanForCausalLM):
    """As the first 7B's files spell it."""
