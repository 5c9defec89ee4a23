"""Token embedding."""

from paddock.graph import Module, Parameter, Tensor
from paddock.graph import ops as F


class Embedding(Module):
    """Rows of a table, one a token; every rank holds the whole table."""

    def __init__(self, vocab: int, size: int) -> None:
        self.weight = Parameter((vocab, size))

    def forward(self, ids: Tensor) -> Tensor:
        """ids: integers [tokens] -> [tokens, size]."""
        return F.gather(self.weight.tensor, ids)
