"""T5 in Hugging Face's layout."""

from paddock.weights.rules import Fuse, Ignore, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("SelfAttention.qkv_proj", {part: f"SelfAttention.{part}" for part in ("q", "k", "v")}),
    Fuse("EncDecAttention.kv_proj", {part: f"EncDecAttention.{part}" for part in ("k", "v")}),
    Rename("EncDecAttention.q_proj", "EncDecAttention.q"),
    Rename("SelfAttention.o_proj", "SelfAttention.o"),
    Rename("EncDecAttention.o_proj", "EncDecAttention.o"),
    Rename("layer.0.relative_attention_bias", "layer.0.SelfAttention.relative_attention_bias"),
    Fuse(
        "DenseReluDense.gate_up_proj", {"gate": "DenseReluDense.wi_0", "up": "DenseReluDense.wi_1"}
    ),
    Rename("DenseReluDense.up_proj", "DenseReluDense.wi"),
    Rename("DenseReluDense.down_proj", "DenseReluDense.wo"),
    Tie("lm_head.weight", to="shared.weight"),
    # Of the first checkpoints, which never used it; and the embedding again, as they have it.
    Ignore("EncDecAttention.relative_attention_bias"),
    Ignore("embed_tokens"),
)
