"""InternLM3: Llama with its own names for the switches of biases."""

from collections.abc import Mapping
from typing import ClassVar

from paddock.models.config import Context
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class InternLM3Config(LlamaConfig):
    max_position_embeddings: Context = 32_768
    rms_norm_eps: float = 1e-5

    synonyms: ClassVar[Mapping[str, str]] = {"qkv_bias": "attention_bias", "bias": "mlp_bias"}

    @property
    def out_bias(self) -> bool:
        return self.mlp_bias


class InternLM3ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = InternLM3Config
