"""DistilBERT in Hugging Face's layout."""

from paddock.weights.rules import Body, Fuse, Ignore, Rename, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    Body("distilbert"),
    Fuse(
        "attention.qkv_proj",
        {"q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin"},
    ),
    Rename("attention.o_proj", "attention.out_lin"),
    Rename("attention_norm", "sa_layer_norm"),
    Rename("mlp.up_proj", "ffn.lin1"),
    Rename("mlp.down_proj", "ffn.lin2"),
    Rename("output_norm", "output_layer_norm"),
    Ignore("vocab_transform"),
    Ignore("vocab_layer_norm"),
    Ignore("vocab_projector"),
)
