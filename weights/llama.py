"""Llama in Hugging Face's layout; Mistral, Qwen2, Qwen3 and SmolLM3 use the same names."""

from paddock.weights.rules import Fuse, Ignore, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Fuse("qkv_proj", {"q": "q_proj", "k": "k_proj", "v": "v_proj"}),
    Fuse("gate_up_proj", {"gate": "gate_proj", "up": "up_proj"}),
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary_emb.inv_freq"),
)
