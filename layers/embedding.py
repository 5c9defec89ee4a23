"""Token embedding."""

from paddock.graph import Module, Parameter, Tensor
from paddock.graph import ops as F


class Embedding(Module):
    """Rows of a table times `scale`, one a token; every rank holds the whole table."""

    def __init__(self, vocab: int, size: int, *, scale: float = 1.0) -> None:
        self.weight = Parameter((vocab, size))
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        """ids: integers [tokens] -> [tokens, size]."""
        return F.gather(self.weight.tensor, ids) * self.scale


class PositionEmbedding(Module):
    """Rows of a learned table, one a position.

    `offset` rows stand before the first position's (OPT has two, of a padding that it once had).
    """

    def __init__(self, positions: int, size: int, *, offset: int = 0) -> None:
        self.weight = Parameter((positions + offset, size))
        self.offset = offset

    def forward(self, positions: Tensor) -> Tensor:
        """positions: integers [tokens] -> [tokens, size]."""
        if self.offset:
            positions = positions + F.fill(self.offset, positions.dtype)
        return F.gather(self.weight.tensor, positions)
