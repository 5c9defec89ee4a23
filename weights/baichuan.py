"""Baichuan in its own layout: q, k and v lie one after the other."""

from paddock.weights.rules import Fuse, Ignore, Rename, Rule, Tie, UnitRows

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("gate_up_proj", {"gate": "gate_proj", "up": "up_proj"}),
    Rename("self_attn.qkv_proj", "self_attn.W_pack"),
    Rename("lm_head.unit", "lm_head"),
    UnitRows("lm_head.unit.weight"),
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary_emb.inv_freq"),
)
