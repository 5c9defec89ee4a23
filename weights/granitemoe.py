"""Granite MoE as published: all experts in one tensor, its rows in the order that is here."""

from paddock.weights.rules import Fuse, Ignore, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("qkv_proj", {"q": "q_proj", "k": "k_proj", "v": "v_proj"}),
    Rename("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.input_linear"),
    Rename("block_sparse_moe.experts.down_proj", "block_sparse_moe.output_linear"),
    Rename("block_sparse_moe.gate", "block_sparse_moe.router.layer"),
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary_emb.inv_freq"),
)
