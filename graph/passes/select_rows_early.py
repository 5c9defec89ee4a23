"""Pick the rows that somebody reads before computing on all of them."""

from paddock.graph import ops as F
from paddock.graph.graph import current_graph
from paddock.graph.op import Op
from paddock.graph.passes.pattern import Match, Rule, any_, op
from paddock.graph.tensor import Tensor


def _norm_of_rows(m: Match) -> Tensor:
    norm: Op = m.ops["norm"]
    rows = F.gather(m["x"], m["rows"])
    with current_graph().at(m.root.inputs[0].node):
        tensor: Tensor = norm(rows, *_operands(m))
    return tensor


def _operands(m: Match) -> list[Tensor]:
    return [m[name] for name in ("weight", "bias") if name in m.tensors]


RULES: list[Rule] = [
    (
        op(F.Gather, op(F.RMSNorm, any_("x"), any_("weight"), as_="norm"), any_("rows")),
        _norm_of_rows,
    ),  # rms_norm(x, w)[rows] -> rms_norm(x[rows], w)
    (
        op(F.Gather, op(F.LayerNorm, any_("x"), any_("weight"), as_="norm"), any_("rows")),
        _norm_of_rows,
    ),  # layer_norm(x, w)[rows] -> layer_norm(x[rows], w)
    (
        op(
            F.Gather,
            op(F.LayerNorm, any_("x"), any_("weight"), any_("bias"), as_="norm"),
            any_("rows"),
        ),
        _norm_of_rows,
    ),  # layer_norm(x, w, b)[rows] -> layer_norm(x[rows], w, b)
]
