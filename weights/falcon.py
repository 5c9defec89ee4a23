"""Falcon in Hugging Face's layout: each key head's queries, its key and its value take turns."""

from paddock.weights.bloom import HUGGING_FACE as BLOOM
from paddock.weights.rules import Ignore, Rule

HUGGING_FACE: tuple[Rule, ...] = (*BLOOM, Ignore("rotary_emb.inv_freq"))
