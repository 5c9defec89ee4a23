"""Mixtral as published: an expert's w1 is its gate, w3 its up, w2 its down."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Rule, Stack

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Stack("experts.gate_up_proj", {"gate": "experts.{e}.w1", "up": "experts.{e}.w3"}),
    Stack("experts.down_proj", {"down": "experts.{e}.w2"}),
)
