"""Mamba and Mamba 2 in Hugging Face's layout."""

from paddock.weights.rules import MinusExp, Older, Rename, Rule, Tie

RATES: tuple[Rule, ...] = (Rename("A", "A_log"), MinusExp("A"))
HUGGING_FACE: tuple[Rule, ...] = (
    *RATES,
    Older("backbone.embeddings", "backbone.embedding"),
    Tie("lm_head.weight", to="backbone.embeddings.weight"),
)
