"""BLOOM in Hugging Face's layout: q, k and v take turns head by head."""

from paddock.weights.rules import Body, Interleave, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Interleave("qkv_proj", ("q", "k", "v")),
    Rename("self_attention.qkv_proj", "self_attention.query_key_value"),
    Rename("self_attention.o_proj", "self_attention.dense"),
    Rename("mlp.up_proj", "mlp.dense_h_to_4h"),
    Rename("mlp.down_proj", "mlp.dense_4h_to_h"),
    Body("transformer"),
    Tie("lm_head.weight", to="transformer.word_embeddings.weight"),
)
