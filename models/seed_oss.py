"""Seed-OSS: Llama whose projection behind attention says of its bias by itself."""

from typing import ClassVar

from paddock.models.config import Context, Heads
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class SeedOssConfig(LlamaConfig):
    head_dim: Heads = 128
    max_position_embeddings: Context = 524_288
    attention_bias: bool = True
    attention_out_bias: bool = False

    ignored: ClassVar[frozenset[str]] = LlamaConfig.ignored | {"residual_dropout"}

    @property
    def out_bias(self) -> bool:
        return self.attention_out_bias


class SeedOssForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = SeedOssConfig
