"""InternLM2 and 2.5: Llama whose queries, keys and values are stored in one, under other names."""

from typing import ClassVar, Literal

from paddock.models.config import Context
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class InternLM2Config(LlamaConfig):
    max_position_embeddings: Context = 2048
    bias: bool = True
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    @property
    def qkv_bias(self) -> bool:
        return self.bias

    @property
    def out_bias(self) -> bool:
        return self.bias


class InternLM2ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = InternLM2Config
    weight_map: ClassVar[str] = "paddock.weights.internlm2"
