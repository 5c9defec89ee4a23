"""Helium: Llama whose neighbouring elements turn together."""

from typing import ClassVar

from paddock.models.config import Context, Heads
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class HeliumConfig(LlamaConfig):
    head_dim: Heads = 128
    max_position_embeddings: Context = 4096
    rms_norm_eps: float = 1e-8

    default_theta: ClassVar[float] = 100_000.0
    interleaved: ClassVar[bool] = True

    @property
    def out_bias(self) -> bool:
        return False


class HeliumForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = HeliumConfig
