"""Gemma in Hugging Face's layout: Llama's names, and the weights of norms less 1."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Add, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Add("model.norm", 1.0),
    Add("input_layernorm", 1.0),
    Add("post_attention_layernorm", 1.0),
    Add("pre_feedforward_layernorm", 1.0),
    Add("post_feedforward_layernorm", 1.0),
    Add("q_norm", 1.0),
    Add("k_norm", 1.0),
)
