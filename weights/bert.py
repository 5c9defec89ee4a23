"""BERT in Hugging Face's layout; RoBERTa, XLM-RoBERTa and ELECTRA name their blocks the same."""

from paddock.weights.rules import Body, Fuse, Ignore, Older, Rename, Rule

BLOCKS: tuple[Rule, ...] = (
    Fuse(
        "attention.qkv_proj",
        {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"},
    ),
    Rename("attention.o_proj", "attention.output.dense"),
    Rename("attention_norm", "attention.output.LayerNorm"),
    Rename("mlp.up_proj", "intermediate.dense"),
    Rename("mlp.down_proj", "output.dense"),
    Rename("output_norm", "output.LayerNorm"),
    # As TensorFlow called them.
    Older("LayerNorm.weight", "LayerNorm.gamma"),
    Older("LayerNorm.bias", "LayerNorm.beta"),
    Ignore("embeddings.position_ids"),
)

HUGGING_FACE: tuple[Rule, ...] = (
    Body("bert"),
    *BLOCKS,
    Ignore("pooler"),
    Ignore("cls"),
)
