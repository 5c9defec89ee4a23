"""Phi-3 in Hugging Face's layout: q, k, v and gate, up lie fused, in the order of the slots."""

from paddock.weights.rules import Ignore, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    Tie("lm_head.weight", to="model.embed_tokens.weight"),
    Ignore("rotary_emb.inv_freq"),
)
