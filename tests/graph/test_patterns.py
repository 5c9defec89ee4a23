"""What patterns match and capture, and what rewriting promises."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import paddock.graph.ops as F
from paddock.graph import DType, Graph, GraphError, Node, Tensor, use_graph
from paddock.graph.passes import Match, Pattern, Rule, any_, op, rewrite
from tests.graph.written import tensor, tensors


def root_of(*outputs: Tensor) -> Node:
    return outputs[0].node


def one_rule(pattern: Pattern, make: object) -> Sequence[Rule]:
    return [(pattern, make)]  # type: ignore[list-item]


def test_captures_tensors_and_ops() -> None:
    with use_graph(Graph()):
        x, w = tensors("f32[tokens, 8]", "f32[8]")
        y = F.scale(F.rms_norm(x, w, 0.1), 2.0)
    pattern = op(F.Scale, op(F.RMSNorm, any_("x"), any_("w"), as_="norm"), as_="scale")
    found = pattern.match(y.node)
    assert found is not None
    assert found["x"] is x
    assert found["w"] is w
    assert found.ops == {"norm": F.RMSNorm(0.1), "scale": F.Scale(2.0)}
    assert found.root is y.node


def test_the_class_the_operands_and_the_condition_must_match() -> None:
    with use_graph(Graph()):
        x, w, b = tensors("f32[tokens, 8]", "f32[8]", "f32[8]")
        y = F.scale(x, 2.0).node
        norm = F.layer_norm(x, w, b, 0.1).node
    assert op(F.Scale, any_("x"), where=lambda o: o == F.Scale(2.0)).match(y)
    assert not op(F.Scale, any_("x"), where=lambda o: o == F.Scale(3.0)).match(y)
    assert not op(F.Mul, any_("x"), any_("y")).match(y)
    assert not op(F.LayerNorm, any_("x"), any_("w")).match(norm)
    assert op(F.LayerNorm, any_("x"), any_("w"), any_("b")).match(norm)
    assert not op(F.Source, any_("x")).match(y)  # exactly the class, not its bases


def test_a_name_captured_twice_must_be_one_tensor() -> None:
    pattern = op(F.Mul, any_("x"), op(F.Activation, any_("x")))
    with use_graph(Graph()):
        x, other = tensors("f32[tokens, 8]", "f32[tokens, 8]")
        assert pattern.match(F.mul(x, F.silu(x)).node)
        assert not pattern.match(F.mul(other, F.silu(x)).node)


def test_an_op_captured_twice_must_be_equal() -> None:
    pattern = op(F.Add, op(F.Scale, any_("x"), as_="scale"), op(F.Scale, any_("y"), as_="scale"))
    with use_graph(Graph()):
        x, y = tensors("f32[tokens, 8]", "f32[tokens, 8]")
        assert pattern.match(F.add(F.scale(x, 2.0), F.scale(y, 2.0)).node)
        assert not pattern.match(F.add(F.scale(x, 2.0), F.scale(y, 3.0)).node)


def test_operands_say_which_output_they_are() -> None:
    def gated(gate: int, up: int) -> Pattern:
        return op(
            F.Mul,
            op(F.Activation, op(F.Split, any_("x"), output=gate)),
            op(F.Split, any_("x"), output=up),
        )

    with use_graph(Graph()):
        gate, up = F.split(tensor("f32[tokens, 8]"), 4, 4)
        y = F.mul(F.silu(gate), up).node
    assert gated(0, 1).match(y)
    assert not gated(1, 0).match(y)
    assert not gated(0, 0).match(y)


def test_a_failed_match_leaves_nothing_behind() -> None:
    """The second operand fails after the first has captured; the next try starts anew."""
    pattern = op(F.Add, op(F.Scale, any_("x")), op(F.Activation, any_("x")))
    with use_graph(Graph()):
        x, y = tensors("f32[tokens, 8]", "f32[tokens, 8]")
        assert not pattern.match(F.add(F.scale(x, 2.0), F.silu(y)).node)
        found = pattern.match(F.add(F.scale(y, 2.0), F.silu(y)).node)
    assert found is not None
    assert found["x"] is y


def test_roots_with_several_outputs_are_replaced_by_as_many() -> None:
    graph = Graph()
    with use_graph(graph):
        x = tensor("f32[tokens, 8]")
        a, b = F.split(x, 4, 4)
        graph.outputs = (F.scale(b, 2.0), F.scale(a, 3.0))

    def by_rows(m: Match) -> tuple[Tensor, ...]:
        return F.silu(F.split(m["x"], 4, 4)[0]), F.split(m["x"], 4, 4)[1]

    split_once = op(F.Split, any_("x"), where=lambda o: o == F.Split((4, 4)))
    with pytest.raises(GraphError, match="without an end"):
        rewrite(graph, [(split_once, by_rows)])  # what it makes matches again

    def thirds(m: Match) -> tuple[Tensor, ...]:
        first, second, third = F.Split((2, 2, 4))(m["x"])
        return F.concat(first, second), third

    result = rewrite(graph, [(split_once, thirds)])
    assert result.dump() == (
        "%0 = input(key=x) : f32[tokens, 8]\n"
        "%1 = split(%0, sizes=(2, 2, 4)) : f32[tokens, 2], f32[tokens, 2], f32[tokens, 4]\n"
        "%2 = concat(%1.0, %1.1) : f32[tokens, 4]\n"
        "%3 = scale(%1.2, factor=2) : f32[tokens, 4]\n"
        "%4 = scale(%2, factor=3) : f32[tokens, 4]\n"
        "return %3, %4\n"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda m: F.concat(m["x"], m["x"]),
            r"a rewrite of scale gives f32\[tokens, 16\], not f32",
        ),
        (lambda m: (m["x"], m["x"]), "a rewrite of scale gives 2 tensors, not 1"),
        (lambda m: (), "a rewrite of scale gives 0 tensors, not 1"),
        (lambda m: F.scale(m["x"], 2.0), "the rules rewrite scale without an end"),
        (lambda m: F.scale(F.silu(m["x"]), 3.0), "the rules rewrite scale without an end"),
        (lambda m: F.silu(F.scale(m["x"], 2.0)), "the rules rewrite the graph without an end"),
    ],
)
def test_rewrites_that_cannot_stand_are_refused(make: object, message: str) -> None:
    graph = Graph()
    with use_graph(graph):
        graph.outputs = (F.scale(tensor("f32[tokens, 8]"), 2.0),)
    with pytest.raises(GraphError, match=message):
        rewrite(graph, one_rule(op(F.Scale, any_("x")), make))


def test_what_is_made_stands_where_the_root_stood() -> None:
    graph = Graph()
    with use_graph(graph), graph.scope("model"), graph.scope("mlp"):
        x = tensor("f32[tokens, 8]")
        graph.outputs = (F.scale(x, 2.0),)
    result = rewrite(graph, [(op(F.Scale, any_("x")), lambda m: F.add(m["x"], m["x"]))])
    made = result.nodes[-1]
    assert (made.op, made.path) == (F.Add(), "model.mlp")
    assert made.source == graph.nodes[-1].source
    assert graph.nodes[-1].op == F.Scale(2.0)


def test_the_first_rule_that_gives_something_wins() -> None:
    graph = Graph()
    with use_graph(graph):
        graph.outputs = (F.scale(tensor("f32[tokens, 8]"), 2.0),)
    tried: list[str] = []

    def rule(name: str, kind: str | None) -> Rule:
        def make(m: Match) -> Tensor | None:
            tried.append(name)
            return None if kind is None else F.activation(m["x"], kind)

        return op(F.Scale, any_("x")), make

    result = rewrite(graph, [rule("a", None), rule("b", "tanh"), rule("c", "relu")])
    assert result.outputs[0].node.op == F.Activation("tanh")
    assert tried == ["a", "b"]


def test_what_a_rewrite_makes_before_giving_up_is_taken_back() -> None:
    graph = Graph()
    with use_graph(graph):
        graph.outputs = (F.scale(tensor("f32[tokens, 8]"), 2.0),)

    def hesitates(m: Match) -> None:
        F.Weight("unused", DType.F32, (8,))()
        F.silu(m["x"])

    result = rewrite(graph, [(op(F.Scale, any_("x")), hesitates)])
    assert result.dump() == graph.dump()
    # Nor does a later rule find the weight as if it were there.
    with use_graph(result):
        before = len(result.nodes)
        F.Weight("unused", DType.F32, (8,))()
    assert len(result.nodes) == before + 1


def test_operands_are_rewritten_before_their_readers() -> None:
    """relu(scale(x)) -> scale(relu(x)) meets each scale on its way up, one after the other."""
    graph = Graph()
    with use_graph(graph):
        y = tensor("f32[tokens, 8]")
        for factor in (2.0, 3.0, 5.0):
            y = F.scale(y, factor)
        graph.outputs = (F.activation(y, "relu"),)
    fold = op(F.Scale, op(F.Scale, any_("x"), as_="inner"), as_="outer")

    def folded(m: Match) -> Tensor:
        inner, outer = m.ops["inner"], m.ops["outer"]
        assert isinstance(inner, F.Scale)
        assert isinstance(outer, F.Scale)
        return F.scale(m["x"], inner.factor * outer.factor)

    result = rewrite(graph, [(fold, folded)])
    assert result.dump() == (
        "%0 = input(key=x) : f32[tokens, 8]\n"
        "%1 = scale(%0, factor=30) : f32[tokens, 8]\n"
        "%2 = activation(%1, kind=relu) : f32[tokens, 8]\n"
        "return %2\n"
    )
