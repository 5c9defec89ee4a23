"""What vision towers are made of: the whole of it is on every rank, so that steps without images
need no exchange."""

from math import prod

from paddock.graph import Module, Parameter, Tensor
from paddock.graph import ops as F
from paddock.layers.activation import activate
from paddock.layers.linear import ReplicatedLinear


class PatchEmbedding(Module):
    """A convolution whose windows do not overlap: a product of each patch with every filter."""

    def __init__(self, hidden: int, window: tuple[int, ...], *, bias: bool) -> None:
        """`window`: channels, perhaps frames, height and width."""
        self.weight = Parameter((hidden, *window))
        self.bias = Parameter((hidden,)) if bias else None
        self.size = prod(window)

    def forward(self, patches: Tensor) -> Tensor:
        """patches: [patches, numbers of a window] -> [patches, hidden]."""
        x = F.linear(patches, F.reshape(self.weight.tensor, self.size))
        return x if self.bias is None else x + self.bias.tensor


class TowerMLP(Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, hidden: int, inner: int, *, activation: str) -> None:
        self.fc1 = ReplicatedLinear(hidden, inner, bias=True)
        self.fc2 = ReplicatedLinear(inner, hidden, bias=True)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x: [patches, hidden] -> [patches, hidden]."""
        return self.fc2(activate(self.fc1(x), self.activation))


class TowerGatedMLP(Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, hidden: int, inner: int, *, activation: str) -> None:
        self.gate_proj = ReplicatedLinear(hidden, inner, bias=True)
        self.up_proj = ReplicatedLinear(hidden, inner, bias=True)
        self.down_proj = ReplicatedLinear(inner, hidden, bias=True)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x: [patches, hidden] -> [patches, hidden]."""
        return self.down_proj(activate(self.gate_proj(x), self.activation) * self.up_proj(x))
