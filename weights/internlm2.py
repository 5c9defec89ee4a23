"""InternLM2 in its own layout: each key head's queries, its key and its value take turns."""

from paddock.weights.rules import Fuse, Ignore, Interleave, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Interleave("qkv_proj", ("q", "k", "v")),
    Fuse("mlp.gate_up_proj", {"gate": "feed_forward.w1", "up": "feed_forward.w3"}),
    Rename("self_attn.qkv_proj", "attention.wqkv"),
    Rename("self_attn.o_proj", "attention.wo"),
    Rename("mlp.down_proj", "feed_forward.w2"),
    Rename("input_layernorm", "attention_norm"),
    Rename("post_attention_layernorm", "ffn_norm"),
    Rename("model.embed_tokens", "model.tok_embeddings"),
    Rename("lm_head", "output"),
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary_emb.inv_freq"),
)
