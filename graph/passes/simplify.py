"""Identities that leave less to do."""

from paddock.graph import ops as F
from paddock.graph.passes.pattern import Match, Rule, any_, op
from paddock.graph.tensor import Tensor


def _same_type(m: Match) -> Tensor | None:
    return m["x"] if m["x"].type == m.root.outputs[0].type else None


RULES: list[Rule] = [
    (op(F.Cast, any_("x")), _same_type),  # cast(x, its own type) -> x
    (op(F.Reshape, any_("x")), _same_type),  # reshape(x, its own shape) -> x
    (
        op(F.Reshape, op(F.Reshape, any_("x"))),
        lambda m: m.root.op(m["x"]),
    ),  # reshape(reshape(x)) -> reshape(x)
    (
        op(F.Scale, any_("x"), where=lambda o: o == F.Scale(1.0)),
        lambda m: m["x"],
    ),  # x * 1 -> x
]
