"""CodeGen in Hugging Face's layout: for each of four cores its queries, values and keys."""

from paddock.weights.gptj import NAMES
from paddock.weights.rules import Interleave, Rule

HUGGING_FACE: tuple[Rule, ...] = (*NAMES, Interleave("qkv_proj", ("q", "v", "k"), groups=4))
