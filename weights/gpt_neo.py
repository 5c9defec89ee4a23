"""GPT-Neo in Hugging Face's layout."""

from paddock.weights.rules import Body, Fuse, Ignore, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("attn.qkv_proj", {p: f"attn.attention.{p}_proj" for p in "qkv"}),
    Rename("attn.o_proj", "attn.attention.out_proj"),
    Rename("mlp.up_proj", "mlp.c_fc"),
    Rename("mlp.down_proj", "mlp.c_proj"),
    Body("transformer"),
    Tie("lm_head.weight", to="transformer.wte.weight"),
    Ignore("attn.attention.bias"),  # the causal mask
    Ignore("attn.attention.masked_bias"),
)
