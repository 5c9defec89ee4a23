"""Patterns over the graph, and the sweep that applies rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paddock.graph.errors import GraphError
from paddock.graph.graph import Graph, use_graph
from paddock.graph.op import Op
from paddock.graph.tensor import Node, Tensor


@dataclass(frozen=True)
class Any_:
    """Matches every tensor and captures it as `name`."""

    name: str


@dataclass(frozen=True)
class Match:
    """What a pattern captured: tensors by the names of `Any_`, ops by `as_`."""

    root: Node
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: dict[str, Op] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass(frozen=True)
class Pattern:
    """A node with an op of one class, whose operands match in order.

    `where` is a further condition on the op; `as_` captures it. A name that is captured twice
    must be the same tensor both times.
    """

    op: type[Op]
    inputs: tuple[Pattern | Any_, ...]
    where: Callable[[Op], bool] | None = None
    as_: str = ""

    def match(self, node: Node) -> Match | None:
        found = Match(node)
        return found if self._matches(node, found) else None

    def _matches(self, node: Node, found: Match) -> bool:
        if type(node.op) is not self.op or len(node.inputs) != len(self.inputs):
            return False
        if self.where is not None and not self.where(node.op):
            return False
        if self.as_:
            found.ops[self.as_] = node.op
        for pattern, tensor in zip(self.inputs, node.inputs, strict=True):
            if isinstance(pattern, Any_):
                if found.tensors.setdefault(pattern.name, tensor) is not tensor:
                    return False
            elif not pattern._matches(tensor.node, found):
                return False
        return True


# Makes what stands for the root's outputs, or None to leave the node as it is.
Rewrite = Callable[[Match], "Tensor | tuple[Tensor, ...] | None"]
Rule = tuple[Pattern, Rewrite]


def any_(name: str) -> Any_:
    return Any_(name)


def op(
    kind: type[Op],
    *inputs: Pattern | Any_,
    where: Callable[[Op], bool] | None = None,
    as_: str = "",
) -> Pattern:
    return Pattern(kind, inputs, where, as_)


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """A new graph in which every match of a rule's pattern is replaced by its rewrite.

    One sweep in order of evaluation: operands are rewritten before the nodes that read them, and
    what a rule makes is offered to the rules again. What nothing reads afterwards stays, for
    `remove_dead` to take.
    """
    result = Graph(graph.dtype)
    new: dict[int, Tensor] = {}
    with use_graph(result):
        for node in graph.nodes:
            copied = _insert(result, node, tuple(new[id(t)] for t in node.inputs))
            outputs = _simplified(result, copied, rules)
            for old, tensor in zip(node.outputs, outputs, strict=True):
                if old.type != tensor.type:
                    raise GraphError(
                        f"{node.where}: a rewrite of {node.op.name} gives {tensor.type},"
                        f" not {old.type}"
                    )
                new[id(old)] = tensor
        result.outputs = tuple(new[id(t)] for t in graph.outputs)
    return result


def _insert(graph: Graph, node: Node, inputs: tuple[Tensor, ...]) -> Node:
    with graph.at(node):
        graph.insert(node.op, inputs)
    return graph.nodes[-1]


def _simplified(graph: Graph, node: Node, rules: Sequence[Rule]) -> tuple[Tensor, ...]:
    outputs = node.outputs
    for _ in range(100):
        root = outputs[0].node
        if root.outputs != outputs:
            return outputs  # several nodes now stand for one: no pattern has such a root
        for pattern, make in rules:
            found = pattern.match(root)
            if found is None:
                continue
            with graph.at(root):
                made = make(found)
            if made is not None:
                outputs = made if isinstance(made, tuple) else (made,)
                break
        else:
            return outputs
    raise GraphError(f"{node.where}: the rules rewrite {node.op.name} without an end")
