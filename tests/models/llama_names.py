"""Names and shapes of a Llama's tensors, as many families have them; layers folded into one."""

from __future__ import annotations

Folded = dict[str, list[int]]


def llama(
    prefix: str, *, layers: int, hidden: int, inner: int, q: int, kv: int, vocab: int
) -> Folded:
    layer = f"{prefix}.layers.{{0-{layers - 1}}}."
    return {
        f"{prefix}.embed_tokens.weight": [vocab, hidden],
        f"{layer}input_layernorm.weight": [hidden],
        f"{layer}post_attention_layernorm.weight": [hidden],
        f"{layer}self_attn.q_proj.weight": [q, hidden],
        f"{layer}self_attn.k_proj.weight": [kv, hidden],
        f"{layer}self_attn.v_proj.weight": [kv, hidden],
        f"{layer}self_attn.o_proj.weight": [hidden, q],
        f"{layer}mlp.gate_proj.weight": [inner, hidden],
        f"{layer}mlp.up_proj.weight": [inner, hidden],
        f"{layer}mlp.down_proj.weight": [hidden, inner],
        f"{prefix}.norm.weight": [hidden],
    }
