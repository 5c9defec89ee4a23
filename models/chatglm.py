"""ChatGLM2, ChatGLM3 and GLM-4 9B as first published: GLM under names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from paddock.layers import RotaryScaling
from paddock.models.config import Context, Heads
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class ChatGLMConfig(LlamaConfig):
    num_key_value_heads: Heads = 1
    max_position_embeddings: Context = 2048
    rms_norm_eps: float = 1e-5
    add_qkv_bias: bool = False
    multi_query_attention: bool = False
    rope_ratio: float = Field(1.0, gt=0)
    # What every published file has.
    add_bias_linear: Literal[False] = False
    apply_residual_connection_post_layernorm: Literal[False] = False
    original_rope: Literal[True] = True
    post_layer_norm: Literal[True] = True
    rmsnorm: Literal[True] = True

    default_rotary_part: ClassVar[float | None] = 0.5
    interleaved: ClassVar[bool] = True
    synonyms: ClassVar[Mapping[str, str]] = {
        "num_layers": "num_hidden_layers",
        "padded_vocab_size": "vocab_size",
        "ffn_hidden_size": "intermediate_size",
        "kv_channels": "head_dim",
        "multi_query_group_num": "num_key_value_heads",
        "seq_length": "max_position_embeddings",
        "layernorm_epsilon": "rms_norm_eps",
    }
    ignored: ClassVar[frozenset[str]] = frozenset(
        (
            "apply_query_key_layer_scaling",  # of half precision; the product is the same
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "classifier_dropout",
            "fp32_residual_connection",
        )
    )

    @property
    def qkv_bias(self) -> bool:
        return self.add_qkv_bias

    @property
    def out_bias(self) -> bool:
        return False

    def scaling(self) -> RotaryScaling:
        return RotaryScaling(
            rope_theta=10_000.0 * self.rope_ratio,
            partial_rotary_factor=0.5,
        )


class ChatGLMModel(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = ChatGLMConfig
    weight_map: ClassVar[str] = "paddock.weights.chatglm"


class ChatGLMForConditionalGeneration(ChatGLMModel):
    """As newer files name it."""
