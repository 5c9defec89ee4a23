"""RoBERTa in Hugging Face's layout; XLM-RoBERTa and CamemBERT use the same names."""

from paddock.weights.bert import BLOCKS
from paddock.weights.rules import Body, Ignore, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    Body("roberta"),
    *BLOCKS,
    Ignore("pooler"),
    Ignore("lm_head"),
)
