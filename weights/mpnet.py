"""MPNet in Hugging Face's layout."""

from paddock.weights.rules import Body, Fuse, Ignore, Rename, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    Body("mpnet"),
    Fuse(
        "attention.qkv_proj",
        {"q": "attention.attn.q", "k": "attention.attn.k", "v": "attention.attn.v"},
    ),
    Rename("attention.o_proj", "attention.attn.o"),
    Rename("attention_norm", "attention.LayerNorm"),
    Rename("mlp.up_proj", "intermediate.dense"),
    Rename("mlp.down_proj", "output.dense"),
    Rename("output_norm", "output.LayerNorm"),
    Ignore("embeddings.position_ids"),
    Ignore("pooler"),
    Ignore("lm_head"),
)
