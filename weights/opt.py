"""OPT in Hugging Face's layout."""

from paddock.weights.rules import Body, Fuse, Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("qkv_proj", {"q": "q_proj", "k": "k_proj", "v": "v_proj"}),
    Rename("self_attn.o_proj", "self_attn.out_proj"),
    Rename("mlp.up_proj", "fc1"),
    Rename("mlp.down_proj", "fc2"),
    Body("model"),
    Tie("lm_head.weight", to="model.decoder.embed_tokens.weight"),
)
