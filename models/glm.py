"""GLM-4 9B: Llama whose neighbouring elements turn together, in half of each head."""

from typing import ClassVar, Literal

from paddock.models.config import Context, Heads
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class GlmConfig(LlamaConfig):
    num_key_value_heads: Heads = 2
    head_dim: Heads = 128
    max_position_embeddings: Context = 131_072
    rms_norm_eps: float = 1.5625e-7
    partial_rotary_factor: float | None = None
    attention_bias: bool = True
    mlp_bias: Literal[False] = False

    interleaved: ClassVar[bool] = True

    @property
    def rotary_part(self) -> float:
        return 0.5 if self.partial_rotary_factor is None else self.partial_rotary_factor

    @property
    def out_bias(self) -> bool:
        return False


class GlmForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = GlmConfig
    weight_map: ClassVar[str] = "paddock.weights.glm"
