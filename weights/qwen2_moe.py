"""Qwen2-MoE as published: each expert is named as an MLP; Qwen3-MoE and OLMoE are the same."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Rename, Rule, Stack

EXPERTS: tuple[Rule, ...] = (
    Stack("experts.gate_up_proj", {"gate": "experts.{e}.gate_proj", "up": "experts.{e}.up_proj"}),
    Stack("experts.down_proj", {"down": "experts.{e}.down_proj"}),
)
HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    *EXPERTS,
    Rename("mlp.shared_experts", "mlp.shared_expert"),
)
