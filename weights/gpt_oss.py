"""gpt-oss as published: experts in MXFP4, or, where these were widened, [inputs, outputs]."""

from paddock.weights.rules import Fuse, Ignore, Mxfp4, Rename, Rule, Tie, Transpose

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("qkv_proj", {"q": "q_proj", "k": "k_proj", "v": "v_proj"}),
    Rename("mlp.gate", "mlp.router"),
    Rename("experts.gate_up_proj.weight", "experts.gate_up_proj"),
    Rename("experts.gate_up_proj.bias", "experts.gate_up_proj_bias"),
    Rename("experts.down_proj.weight", "experts.down_proj"),
    Rename("experts.down_proj.bias", "experts.down_proj_bias"),
    Transpose("experts.gate_up_proj.weight"),
    Transpose("experts.down_proj.weight"),
    Mxfp4("experts.gate_up_proj.weight"),
    Mxfp4("experts.down_proj.weight"),
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary_emb.inv_freq"),
)
