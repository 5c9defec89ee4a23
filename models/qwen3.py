"""Qwen3: Llama with an RMSNorm over each head of q and k."""

from typing import ClassVar

from paddock.models.config import Heads
from paddock.models.llama import LlamaConfig, LlamaForCausalLM
from paddock.models.qwen2 import Qwen2Config


class Qwen3Config(Qwen2Config):
    head_dim: Heads = 128

    qk_norm: ClassVar[bool] = True

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def out_bias(self) -> bool:
        return self.attention_bias


class Qwen3ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Qwen3Config
