"""GPT-NeoX in Hugging Face's layout: q, k and v take turns head by head."""

from paddock.weights.rules import Ignore, Interleave, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Interleave("qkv_proj", ("q", "k", "v")),
    Rename("attention.qkv_proj", "attention.query_key_value"),
    Rename("attention.o_proj", "attention.dense"),
    Rename("mlp.up_proj", "mlp.dense_h_to_4h"),
    Rename("mlp.down_proj", "mlp.dense_4h_to_h"),
    Rename("lm_head", "embed_out"),
    Tie("lm_head.weight", to="gpt_neox.embed_in.weight"),
    Ignore("attention.bias"),  # the causal mask
    Ignore("attention.masked_bias"),
    Ignore("rotary_emb.inv_freq"),
)
