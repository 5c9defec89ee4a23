"""Marian: the thousand pairs of languages of OPUS-MT.

Junczys-Dowmunt et al. 2018, arxiv.org/abs/1804.00344.
"""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from paddock.graph import Module
from paddock.layers import Sinusoids
from paddock.models.bart import BartConfig, BartForConditionalGeneration
from paddock.models.config import Size


class MarianConfig(BartConfig):
    vocab_size: Size = 58101
    decoder_vocab_size: Size | None = None
    share_encoder_decoder_embeddings: Literal[True] = True

    norm_embedding: ClassVar[bool] = False

    @model_validator(mode="after")
    def _is_one_vocabulary(self) -> Self:
        if self.decoder_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"decoder_vocab_size {self.decoder_vocab_size} is not vocab_size"
                f" {self.vocab_size}: two vocabularies are not supported"
            )
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} is not halves of sines and cosines")
        return self

    def positions(self) -> Module:
        return Sinusoids(self.hidden_size)


class MarianMTModel(BartForConditionalGeneration):
    Config: ClassVar[type[BartConfig]] = MarianConfig
    weight_map: ClassVar[str] = "paddock.weights.marian"
