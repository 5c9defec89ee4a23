"""Undo the fusion of projections, for engines that read each checkpoint tensor where it lies."""

from paddock.graph import ops as F
from paddock.graph.passes.pattern import Match, Rule, any_, op
from paddock.graph.tensor import Tensor


def _split_linear(m: Match) -> tuple[Tensor, ...] | None:
    weights = F.split_parts(m["weight"])
    if weights is None or tuple(w.shape[0] for w in weights) != _sizes(m):
        return None
    pieces = [F.linear(m["x"], w) for w in weights]
    if "bias" in m.tensors:
        biases = F.split_parts(m["bias"])
        if biases is None:
            return None
        pieces = [y + b for y, b in zip(pieces, biases, strict=True)]
    return tuple(pieces)


def _sizes(m: Match) -> tuple[int, ...]:
    assert isinstance(m.root.op, F.Split)
    return m.root.op.sizes


RULES: list[Rule] = [
    (
        op(F.Split, op(F.Linear, any_("x"), any_("weight"))),
        _split_linear,
    ),  # split(x W^T) -> x W_q^T, x W_k^T, x W_v^T
    (
        op(F.Split, op(F.Add, op(F.Linear, any_("x"), any_("weight")), any_("bias"))),
        _split_linear,
    ),  # split(x W^T + b) -> x W_q^T + b_q, ...
]
