"""Phi-1 to 2 in Hugging Face's layout."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Rename, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Rename("self_attn.o_proj", "self_attn.dense"),
    Rename("self_attn.q_norm", "self_attn.q_layernorm"),
    Rename("self_attn.k_norm", "self_attn.k_layernorm"),
    Rename("mlp.up_proj", "mlp.fc1"),
    Rename("mlp.down_proj", "mlp.fc2"),
    Rename("model.norm", "model.final_layernorm"),
)
