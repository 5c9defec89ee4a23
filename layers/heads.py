"""What stands at the end of models that do not write text: rows of f32 for the runtime."""

from paddock.graph import DType, Module, Parameter, Tensor
from paddock.graph import ops as F
from paddock.layers.step import Step


def read_rows(x: Tensor, step: Step) -> Tensor:
    """x: [tokens, size] -> f32 [rows, size], of the tokens that somebody reads."""
    return F.cast(F.gather(x, step.logit_rows), DType.F32)


class Linear(Module):
    """y = x W^T + b, the whole of it on every rank: for heads of a few outputs."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self.weight = Parameter((outputs, inputs))
        self.bias = Parameter((outputs,)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, inputs] -> [n, outputs]."""
        y = F.linear(x, self.weight.tensor)
        return y if self.bias is None else y + self.bias.tensor
