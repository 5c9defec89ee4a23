"""mBART: BART with norms in front, of many languages.

Liu et al. 2020, arxiv.org/abs/2001.08210.
"""

from typing import ClassVar

from paddock.models.bart import BartConfig, BartForConditionalGeneration


class MBartConfig(BartConfig):
    norm_first: ClassVar[bool] = True


class MBartForConditionalGeneration(BartForConditionalGeneration):
    Config: ClassVar[type[BartConfig]] = MBartConfig
