"""Positions as sines and cosines: nothing is learned, and nothing is stored."""

import math

from paddock.graph import Module, Tensor, current_graph
from paddock.graph import ops as F


class Sinusoids(Module):
    """sin(position x frequency) for each frequency, then the cosines of all.

    Frequencies fall from 1 in `size / 2` equal steps of their logarithm: Vaswani et al. 2017,
    arxiv.org/abs/1706.03762, section 3.5, where 1 / 10000 is one step further; with `ends`, it is
    the last, as in tensor2tensor's code. `offset` is added to positions.
    """

    def __init__(self, size: int, *, offset: int = 0, ends: bool = False) -> None:
        half = size // 2
        step = math.log(10_000) / (half - 1 if ends else half)
        self.frequencies = tuple(math.exp(-step * i) for i in range(half))
        self.offset = offset

    def forward(self, positions: Tensor) -> Tensor:
        """positions: integers [tokens] -> [tokens, size]."""
        if self.offset:
            positions = positions + F.fill(self.offset, positions.dtype)
        half = len(self.frequencies)
        cos, sin = F.rotary_angles(positions, self.frequencies)
        # A rotary's tables have every angle twice.
        cosines, _ = F.split(cos, half, half)
        sines, _ = F.split(sin, half, half)
        return F.cast(F.concat(sines, cosines), current_graph().dtype)
