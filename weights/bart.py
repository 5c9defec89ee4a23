"""BART in Hugging Face's layout; mBART, Marian, M2M-100 and Pegasus use the same names."""

from paddock.weights.rules import Fuse, Ignore, Rename, Rule, Tie, Transpose

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("self_attn.qkv_proj", {part: f"self_attn.{part}_proj" for part in ("q", "k", "v")}),
    Fuse("encoder_attn.kv_proj", {part: f"encoder_attn.{part}_proj" for part in ("k", "v")}),
    Rename("o_proj", "out_proj"),
    Rename("mlp.up_proj", "fc1"),
    Rename("mlp.down_proj", "fc2"),
    Transpose("final_logits_bias"),  # a row
    Tie("lm_head.weight", to="model.shared.weight"),
    Ignore("embed_tokens"),  # the embedding again, as older checkpoints have it
)
