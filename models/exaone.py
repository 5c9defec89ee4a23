"""EXAONE 3 and 3.5: Llama under GPT-2's names."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from paddock.models.config import Context
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class ExaoneConfig(LlamaConfig):
    max_position_embeddings: Context = 2048
    rms_norm_eps: float = 1e-5
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    synonyms: ClassVar[Mapping[str, str]] = {
        "num_layers": "num_hidden_layers",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "rms_norm_eps",
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"embed_dropout", "resid_dropout"})


class ExaoneForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = ExaoneConfig
    weight_map: ClassVar[str] = "paddock.weights.exaone"
