"""A stack of blocks that is not cut into pipeline stages."""

from typing import Any

from paddock.graph import GraphError, ModuleList, Tensor, current_mesh
from paddock.graph.module import M


class Stack(ModuleList[M]):
    """Runs all blocks in turn, on every rank.

    An encoder's and its decoder's: every layer of the second reads what comes out of the first, so
    that stages would have to send it along.
    """

    def forward(self, x: Tensor, *beside: Any) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]; `beside` is given to every block."""
        if current_mesh().pp > 1:
            raise GraphError(
                f"an encoder-decoder is not divided over pipeline stages, and pp is"
                f" {current_mesh().pp}; choose mesh.pp=1, and divide it by mesh.tp"
            )
        for block in self.items:
            x = block(x, *beside)
        return x
