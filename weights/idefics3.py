"""Idefics 3 and SmolVLM in Hugging Face's layout: the text model's names are Llama's."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Tie("lm_head.weight", to="model.text_model.embed_tokens.weight"),
)
