"""GLM in Hugging Face's layout: q, k and v apart, gate and up fused."""

from paddock.weights.rules import Fuse, Ignore, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("qkv_proj", {"q": "q_proj", "k": "k_proj", "v": "v_proj"}),
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary_emb.inv_freq"),
)
