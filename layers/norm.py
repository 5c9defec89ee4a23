"""Normalisation layers over the last axis, and over what several ranks hold together."""

from paddock.graph import (
    DType,
    Module,
    Parameter,
    Parts,
    Shard,
    Tensor,
    current_graph,
    current_mesh,
)
from paddock.graph import ops as F


class RMSNorm(Module):
    """weight * x / rms(x).

    `exact` keeps the weight in f32 beside activations in half precision, for models whose
    checkpoints hold weight - 1: the sum has more bits than its terms.
    """

    def __init__(self, size: int, *, eps: float, exact: bool = False) -> None:
        self.weight = Parameter((size,), dtype=DType.F32 if exact else None)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size]."""
        return F.rms_norm(x, self.weight.tensor, self.eps)


class LayerNorm(Module):
    """weight * (x - mean) / std + bias; without `scale`, no weight either. `exact` as above."""

    def __init__(
        self, size: int, *, eps: float, bias: bool = True, scale: bool = True, exact: bool = False
    ) -> None:
        kept = DType.F32 if exact else None
        self.weight = Parameter((size,), dtype=kept) if scale else None
        self.bias = Parameter((size,)) if bias and scale else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size]."""
        weight = _ones(x) if self.weight is None else self.weight.tensor
        bias = None if self.bias is None else self.bias.tensor
        return F.layer_norm(x, weight, bias, self.eps)


class HeadwiseLayerNorm(Module):
    """A LayerNorm for each head of queries or keys, with a weight of its own and no bias."""

    def __init__(self, heads: int, head_dim: int, *, eps: float) -> None:
        shard = Shard(0, Parts({"heads": heads}, repeat=True))
        self.weight = Parameter((heads, head_dim), shard)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, this rank's heads, head_dim]."""
        return F.layer_norm(x, _ones(x), None, self.eps) * self.weight.tensor


class JointRMSNorm(Module):
    """An RMSNorm over all heads of queries or keys together, which the ranks hold in shares.

    Where ranks repeat a key head each is repeated as often, and the mean is the same.
    """

    def __init__(self, heads: int, head_dim: int, *, eps: float) -> None:
        parts = Parts({"heads": heads * head_dim}, head_dim, repeat=True)
        self.weight = Parameter((heads * head_dim,), Shard(0, parts))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, this rank's heads, head_dim]."""
        mesh, heads, size = current_mesh(), x.type.size(1), x.type.size(2)
        own = F.reshape(x, heads * size)
        if mesh.tp == 1:
            y = F.rms_norm(own, self.weight.tensor, self.eps)
        else:
            every = F.all_gather(own, mesh.tp)
            every = F.rms_norm(every, _ones(every), self.eps)
            own = F.split(every, *[heads * size] * mesh.tp)[mesh.tp_rank]
            y = own * self.weight.tensor
        return F.reshape(y, heads, size)


def _ones(x: Tensor) -> Tensor:
    return F.fill(1.0, current_graph().dtype, x.type.size(-1))
