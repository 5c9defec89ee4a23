"""DBRX: all experts' rows in one tensor, w1 the gate, v1 up, and w2 down, [inner, hidden]."""

from paddock.weights.rules import Fold, Rename, Rule, Stack, Transpose

HUGGING_FACE: tuple[Rule, ...] = (
    Rename("attn.qkv_proj", "attn.Wqkv"),
    Rename("attn.o_proj", "attn.out_proj"),
    Rename("ffn.gate", "ffn.router.layer"),
    Stack("experts.gate_up_proj.weight", {"gate": "experts.mlp.w1", "up": "experts.mlp.v1"}),
    Rename("experts.down_proj.weight", "experts.mlp.w2"),
    Fold("experts.down_proj.weight"),
    Transpose("experts.down_proj.weight"),
)
