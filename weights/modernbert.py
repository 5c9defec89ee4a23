"""ModernBERT in Hugging Face's layout."""

from paddock.weights.rules import Body, Ignore, Rename, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    Body("model"),
    Rename("attn.qkv_proj", "attn.Wqkv"),
    Rename("attn.o_proj", "attn.Wo"),
    Rename("mlp.gate_up_proj", "mlp.Wi"),
    Rename("mlp.down_proj", "mlp.Wo"),
    Ignore("head"),
    Ignore("decoder"),
)
