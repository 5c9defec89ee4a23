"""GPT-BigCode in Hugging Face's layout: GPT-2's names; q, k and v take turns key head by key head,
which is one after the other where there is one key head."""

from paddock.weights.gpt2 import NAMES
from paddock.weights.rules import Interleave, Rule

HUGGING_FACE: tuple[Rule, ...] = (*NAMES, Interleave("qkv_proj", ("q", "k", "v")))
