"""Nemotron in Hugging Face's layout: Llama's names, and the weights of norms less 1."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Add, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Add("model.norm.weight", 1.0),
    Add("input_layernorm.weight", 1.0),
    Add("post_attention_layernorm.weight", 1.0),
)
