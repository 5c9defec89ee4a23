"""GPT-J in Hugging Face's layout."""

from paddock.weights.rules import Body, Fuse, Ignore, Rename, Rule, Tie

NAMES: tuple[Rule, ...] = (
    Rename("attn.o_proj", "attn.out_proj"),
    Rename("mlp.up_proj", "mlp.fc_in"),
    Rename("mlp.down_proj", "mlp.fc_out"),
    Body("transformer"),
    Tie("lm_head.weight", to="transformer.wte.weight"),
    Ignore("attn.bias"),  # the causal mask, under its two names
    Ignore("attn.causal_mask"),
    Ignore("attn.masked_bias"),
)

HUGGING_FACE: tuple[Rule, ...] = (
    *NAMES,
    Fuse("qkv_proj", {"q": "q_proj", "k": "k_proj", "v": "v_proj"}),
)
