"""Bamba, Falcon-H1 and Jamba as published: Llama's names for attention, Mamba's for states."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.mamba import RATES
from paddock.weights.qwen2_moe import EXPERTS
from paddock.weights.rules import Rename, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    *EXPERTS,
    *RATES,
    Rename("feed_forward.gate", "feed_forward.router"),
)
