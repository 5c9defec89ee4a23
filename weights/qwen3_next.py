"""Qwen3-Next as published: norms less 1, and projections in which the parts of heads take turns."""

from paddock.weights.mamba import RATES
from paddock.weights.qwen2_moe import HUGGING_FACE as QWEN2_MOE
from paddock.weights.rules import Add, Fuse, Ignore, Interleave, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    *QWEN2_MOE,
    *RATES,
    Fuse("kv_proj", {"k": "k_proj", "v": "v_proj"}),
    Interleave("self_attn.q_proj", ("q", "gate")),
    Interleave("in_proj_qkvz", ("q", "k", "v", "z")),
    Interleave("in_proj_ba", ("b", "a")),
    Add("model.norm", 1.0),
    Add("input_layernorm", 1.0),
    Add("post_attention_layernorm", 1.0),
    Add("q_norm", 1.0),
    Add("k_norm", 1.0),
    Ignore("mtp"),  # layers that predict a second token
)
