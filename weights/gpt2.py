"""GPT-2 in Hugging Face's layout: matrices lie [inputs, outputs], q, k and v in one."""

from paddock.weights.rules import Body, Ignore, Rename, Rule, Tie, Transpose

NAMES: tuple[Rule, ...] = (
    Rename("attn.qkv_proj", "attn.c_attn"),
    Rename("attn.o_proj", "attn.c_proj"),
    Rename("mlp.up_proj", "mlp.c_fc"),
    Rename("mlp.down_proj", "mlp.c_proj"),
    Body("transformer"),
    Tie("lm_head.weight", to="transformer.wte.weight"),
    Ignore("attn.bias"),  # the causal mask
    Ignore("attn.masked_bias"),
)

HUGGING_FACE: tuple[Rule, ...] = (
    *NAMES,
    Transpose("attn.qkv_proj.weight"),
    Transpose("attn.o_proj.weight"),
    Transpose("mlp.up_proj.weight"),
    Transpose("mlp.down_proj.weight"),
)
