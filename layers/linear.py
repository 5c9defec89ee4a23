"""Linear layers that know how they divide over tensor-parallel ranks."""

from collections.abc import Mapping

from paddock.graph import DType, Module, Parameter, Parts, Shard, Tensor, current_mesh
from paddock.graph import ops as F
from paddock.layers.step import Step


class ColumnLinear(Module):
    """y = x W^T + b, the rows of W divided over ranks; several named outputs share one W.

    `unit` is the number of rows that a rank never cuts through; with `repeat`, neighbouring ranks
    share a unit where there are more ranks than units.
    """

    def __init__(
        self,
        inputs: int,
        outputs: dict[str, int],
        *,
        unit: int = 1,
        repeat: bool = False,
        bias: bool = False,
        units: Mapping[str, int] | None = None,
    ) -> None:
        self.parts = Parts(outputs, unit, repeat, units or {})
        self.weight = Parameter((self.parts.total, inputs), Shard(0, self.parts), quantizable=True)
        self.bias = Parameter((self.parts.total,), Shard(0, self.parts)) if bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [tokens, inputs] -> one tensor [tokens, its rank's share] for each named output."""
        y = F.linear(x, self.weight.tensor)
        if self.bias is not None:
            y = y + self.bias.tensor
        return F.split(y, *self.parts.local(current_mesh()).sizes.values())


class ReplicatedLinear(Module):
    """y = x W^T + b, the whole of it on every rank: for few outputs that all heads read."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        self.weight = Parameter((outputs, inputs), quantizable=True)
        self.bias = Parameter((outputs,)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, inputs] -> [tokens, outputs]."""
        y = F.linear(x, self.weight.tensor)
        return y if self.bias is None else y + self.bias.tensor


class RowLinear(Module):
    """y = x W^T + b, the columns of W divided over ranks and the results summed."""

    def __init__(self, inputs: int, outputs: int, *, unit: int = 1, bias: bool = False) -> None:
        columns = Parts({"in": inputs}, unit)
        self.weight = Parameter((outputs, inputs), Shard(1, columns), quantizable=True)
        self.bias = Parameter((outputs,)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, this rank's share of inputs] -> [tokens, outputs]."""
        y = F.linear(x, self.weight.tensor)
        if current_mesh().tp > 1:
            y = F.all_reduce(y)
        return y if self.bias is None else y + self.bias.tensor


class VocabHead(Module):
    """Logits of the rows that somebody reads, in f32; the vocabulary is divided over ranks.

    They are multiplied by `scale`, and then held within +-`soft_cap` by a tanh, where it is given
    (Gemma 2, arxiv.org/abs/2408.00118).
    """

    def __init__(
        self,
        size: int,
        vocab: int,
        *,
        bias: bool = False,
        scale: float = 1.0,
        soft_cap: float | None = None,
    ) -> None:
        rows = Parts({"vocab": vocab})
        self.weight = Parameter((vocab, size), Shard(0, rows), quantizable=True)
        self.bias = Parameter((vocab,), Shard(0, rows)) if bias else None
        self.scale, self.soft_cap = scale, soft_cap

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, size] -> f32 [rows, vocab]."""
        y = F.linear(F.gather(x, step.logit_rows), self.weight.tensor)
        if self.bias is not None:
            y = y + self.bias.tensor
        ranks = current_mesh().tp
        y = F.cast(F.all_gather(y, ranks) if ranks > 1 else y, DType.F32) * self.scale
        if self.soft_cap is None:
            return y
        return F.activation(y * (1 / self.soft_cap), "tanh") * self.soft_cap
