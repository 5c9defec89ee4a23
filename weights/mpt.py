"""MPT in Hugging Face's layout: q, k and v lie one after the other."""

from paddock.weights.rules import Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Rename("attn.qkv_proj", "attn.Wqkv"),
    Rename("attn.o_proj", "attn.out_proj"),
    Tie("lm_head.weight", to="transformer.wte.weight"),
)
