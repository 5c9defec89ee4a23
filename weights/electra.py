"""ELECTRA in Hugging Face's layout."""

from paddock.weights.bert import BLOCKS
from paddock.weights.rules import Body, Ignore, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    Body("electra"),
    *BLOCKS,
    Ignore("generator_predictions"),
    Ignore("generator_lm_head"),
    Ignore("discriminator_predictions"),
)
