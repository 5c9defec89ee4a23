"""Normalisation layers over the last axis."""

from paddock.graph import Module, Parameter, Tensor
from paddock.graph import ops as F


class RMSNorm(Module):
    """weight * x / rms(x)."""

    def __init__(self, size: int, *, eps: float) -> None:
        self.weight = Parameter((size,))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size]."""
        return F.rms_norm(x, self.weight.tensor, self.eps)


class LayerNorm(Module):
    """weight * (x - mean) / std + bias."""

    def __init__(self, size: int, *, eps: float, bias: bool = True) -> None:
        self.weight = Parameter((size,))
        self.bias = Parameter((size,)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size]."""
        bias = None if self.bias is None else self.bias.tensor
        return F.layer_norm(x, self.weight.tensor, bias, self.eps)
