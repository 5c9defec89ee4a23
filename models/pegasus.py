"""Pegasus: trained to write the sentences that were left out, so that it summarizes.

Zhang et al. 2019, arxiv.org/abs/1912.08777.
"""

from typing import ClassVar, Self

from pydantic import model_validator

from paddock.graph import Module
from paddock.layers import Sinusoids
from paddock.models.bart import BartConfig, BartForConditionalGeneration


class PegasusConfig(BartConfig):
    norm_first: ClassVar[bool] = True
    norm_embedding: ClassVar[bool] = False

    @model_validator(mode="after")
    def _is_even(self) -> Self:
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} is not halves of sines and cosines")
        return self

    def positions(self) -> Module:
        return Sinusoids(self.hidden_size)


class PegasusForConditionalGeneration(BartForConditionalGeneration):
    Config: ClassVar[type[BartConfig]] = PegasusConfig
    weight_map: ClassVar[str] = "paddock.weights.marian"
