"""Persimmon in Hugging Face's layout: q, k and v take turns head by head."""

from paddock.weights.rules import Ignore, Interleave, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Interleave("qkv_proj", ("q", "k", "v")),
    Rename("self_attn.qkv_proj", "self_attn.query_key_value"),
    Rename("self_attn.o_proj", "self_attn.dense"),
    Rename("self_attn.q_norm", "self_attn.q_layernorm"),
    Rename("self_attn.k_norm", "self_attn.k_layernorm"),
    Rename("mlp.up_proj", "mlp.dense_h_to_4h"),
    Rename("mlp.down_proj", "mlp.dense_4h_to_h"),
    Rename("model.norm", "model.final_layernorm"),
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary_emb.inv_freq"),
)
