"""M2M-100 and NLLB: translation between any two of a hundred, and of two hundred, languages.

Fan et al. 2020, arxiv.org/abs/2010.11125; NLLB Team 2022, arxiv.org/abs/2207.04672 (dense ones).
"""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module
from paddock.layers import Sinusoids
from paddock.models.bart import BartConfig, BartForConditionalGeneration
from paddock.models.config import ActivationName, Size


class M2M100Config(BartConfig):
    vocab_size: Size = 128112
    activation_function: ActivationName = "relu"
    scale_embedding: bool = True
    pad_token_id: int = Field(1, ge=0, le=2**20)

    norm_first: ClassVar[bool] = True
    norm_embedding: ClassVar[bool] = False

    @model_validator(mode="after")
    def _is_even(self) -> Self:
        if self.hidden_size % 2 or self.hidden_size < 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not halves of sines and cosines")
        return self

    def positions(self) -> Module:
        """Counted from behind the number of the padding, as fairseq does."""
        return Sinusoids(self.hidden_size, offset=self.pad_token_id + 1, ends=True)


class M2M100ForConditionalGeneration(BartForConditionalGeneration):
    Config: ClassVar[type[BartConfig]] = M2M100Config
    weight_map: ClassVar[str] = "paddock.weights.marian"
    logits_bias: ClassVar[bool] = False
