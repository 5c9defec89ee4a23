"""EXAONE 3 in its own layout."""

from paddock.weights.rules import Fuse, Ignore, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("self_attn.qkv_proj", {p: f"attn.attention.{p}_proj" for p in "qkv"}),
    Fuse("gate_up_proj", {"gate": "c_fc_0", "up": "c_fc_1"}),
    Rename("self_attn.o_proj", "attn.attention.out_proj"),
    Rename("mlp.down_proj", "mlp.c_proj"),
    Rename("input_layernorm", "ln_1"),
    Rename("post_attention_layernorm", "ln_2"),
    Rename("model.embed_tokens", "transformer.wte"),
    Rename("model.layers", "transformer.h"),
    Rename("model.norm", "transformer.ln_f"),
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary.inv_freq"),
    Ignore("rotary_emb.inv_freq"),
)
