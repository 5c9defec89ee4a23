"""Feed-forward layers."""

from paddock.graph import Module, Tensor
from paddock.layers.activation import activate
from paddock.layers.linear import ColumnLinear, RowLinear


class GatedMLP(Module):
    """down(act(gate(x)) * up(x)): Shazeer 2020, arxiv.org/abs/2002.05202."""

    def __init__(
        self, hidden: int, inner: int, *, activation: str = "silu", bias: bool = False
    ) -> None:
        self.gate_up_proj = ColumnLinear(hidden, {"gate": inner, "up": inner}, bias=bias)
        self.down_proj = RowLinear(inner, hidden, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        gate, up = self.gate_up_proj(x)
        return self.down_proj(activate(gate, self.activation) * up)


class MLP(Module):
    """down(act(up(x)))."""

    def __init__(
        self, hidden: int, inner: int, *, activation: str = "gelu", bias: bool = True
    ) -> None:
        self.up_proj = ColumnLinear(hidden, {"up": inner}, bias=bias)
        self.down_proj = RowLinear(inner, hidden, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        (up,) = self.up_proj(x)
        return self.down_proj(activate(up, self.activation))
