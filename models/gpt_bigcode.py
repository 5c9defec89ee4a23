"""GPT-BigCode (StarCoder, SantaCoder): GPT-2 whose queries may share one key and value."""

from collections.abc import Mapping
from typing import ClassVar

from paddock.layers import Attention
from paddock.models.config import ActivationName
from paddock.models.gpt2 import GPT2Config, GPT2LMHeadModel


class GPTBigCodeConfig(GPT2Config):
    activation_function: ActivationName = "gelu_pytorch_tanh"
    multi_query: bool = True

    ignored: ClassVar[frozenset[str]] = GPT2Config.ignored | {
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "num_key_value_heads",  # multi_query again
        "inference_runner",
        "max_batch_size",
        "max_sequence_length",
        "pad_key_length",
        "pre_allocate_kv_cache",
        "validate_runner_input",
    }
    synonyms: ClassVar[Mapping[str, str]] = GPT2Config.synonyms

    def attention(self, layer: int) -> Attention:
        return Attention(
            self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=1 if self.multi_query else self.num_attention_heads,
            head_dim=self.head_dim,
            rotary=None,
            scale=self.head_dim**-0.5 if self.scale_attn_weights else 1.0,
            bias=True,
            out_bias=True,
        )


class GPTBigCodeForCausalLM(GPT2LMHeadModel):
    Config: ClassVar[type[GPT2Config]] = GPTBigCodeConfig
    weight_map: ClassVar[str] = "paddock.weights.gpt_bigcode"
