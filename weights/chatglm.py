"""ChatGLM in its own layout: q, k, v and gate, up lie fused, in the order of the slots."""

from paddock.weights.rules import Ignore, Rename, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    Rename("self_attn.qkv_proj", "self_attention.query_key_value"),
    Rename("self_attn.o_proj", "self_attention.dense"),
    Rename("mlp.gate_up_proj", "mlp.dense_h_to_4h"),
    Rename("mlp.down_proj", "mlp.dense_4h_to_h"),
    Rename("model.embed_tokens", "transformer.embedding.word_embeddings"),
    Rename("model.layers", "transformer.encoder.layers"),
    Rename("model.norm", "transformer.encoder.final_layernorm"),
    Rename("lm_head", "transformer.output_layer"),
    Ignore("rotary_pos_emb.inv_freq"),
)
