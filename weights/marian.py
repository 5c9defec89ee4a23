"""Marian, M2M-100 and Pegasus in Hugging Face's layout: BART's, but positions are computed."""

from paddock.weights.bart import HUGGING_FACE as BART
from paddock.weights.rules import Ignore, Rule

HUGGING_FACE: tuple[Rule, ...] = (*BART, Ignore("embed_positions"))
