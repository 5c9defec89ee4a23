"""Patterns over the graph, and the sweep that applies rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paddock.graph.errors import GraphError
from paddock.graph.graph import Graph, use_graph
from paddock.graph.op import Op
from paddock.graph.passes.remove_dead import remove_dead
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
    must be the same tensor, or an equal op, both times. `output` says which output of the node is
    read, where the pattern stands for an operand and the op has several.
    """

    op: type[Op]
    inputs: tuple[Pattern | Any_, ...]
    where: Callable[[Op], bool] | None = None
    as_: str = ""
    output: int = 0

    def match(self, node: Node) -> Match | None:
        found = Match(node)
        return found if self._matches(node, found) else None

    def _matches(self, node: Node, found: Match) -> bool:
        if type(node.op) is not self.op or len(node.inputs) != len(self.inputs):
            return False
        if self.where is not None and not self.where(node.op):
            return False
        if self.as_ and found.ops.setdefault(self.as_, node.op) != node.op:
            return False
        for pattern, tensor in zip(self.inputs, node.inputs, strict=True):
            if isinstance(pattern, Any_):
                if found.tensors.setdefault(pattern.name, tensor) is not tensor:
                    return False
            elif tensor.index != pattern.output or not pattern._matches(tensor.node, found):
                return False
        return True


# More rewrites of one node, or sweeps over a graph, than this many are a cycle of rules.
_SWEEPS = 100

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
    output: int = 0,
) -> Pattern:
    return Pattern(kind, inputs, where, as_, output)


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """A new graph in which every match of a rule's pattern is replaced by its rewrite.

    Sweeps in order of evaluation, so that operands are rewritten before the nodes that read them,
    until no rule has anything left to do. What nothing needs any more is dropped after each.
    """
    for _ in range(_SWEEPS):
        graph, changed = _sweep(graph, rules)
        if not changed:
            return graph
        graph = remove_dead(graph)
    raise GraphError("the rules rewrite the graph without an end")


def _sweep(graph: Graph, rules: Sequence[Rule]) -> tuple[Graph, bool]:
    """Each node offered to the rules once, and whether any was replaced; those are dead now."""
    changed = False
    result = Graph(graph.dtype)
    new: dict[int, Tensor] = {}
    with use_graph(result):
        for node in graph.nodes:
            copied = _insert(result, node, tuple(new[id(t)] for t in node.inputs))
            outputs = _simplified(result, copied, rules)
            changed |= outputs != copied.outputs
            for old, tensor in zip(node.outputs, outputs, strict=True):
                if old.type != tensor.type:
                    raise GraphError(
                        f"{node.where}: a rewrite of {node.op.name} gives {tensor.type},"
                        f" not {old.type}"
                    )
                new[id(old)] = tensor
        result.outputs = tuple(new[id(t)] for t in graph.outputs)
    return result, changed


def _insert(graph: Graph, node: Node, inputs: tuple[Tensor, ...]) -> Node:
    with graph.at(node):
        graph.insert(node.op, inputs)
    return graph.nodes[-1]


def _simplified(graph: Graph, node: Node, rules: Sequence[Rule]) -> tuple[Tensor, ...]:
    outputs = node.outputs
    for _ in range(_SWEEPS):
        root = outputs[0].node
        if root.outputs != outputs:
            return outputs  # several nodes now stand for one: no pattern has such a root
        for pattern, make in rules:
            found = pattern.match(root)
            if found is None:
                continue
            count = len(graph.nodes)
            with graph.at(root):
                made = make(found)
            if made is None:
                graph.withdraw(count)
            else:
                outputs = made if isinstance(made, tuple) else (made,)
                if len(outputs) != len(node.outputs):
                    raise GraphError(
                        f"{node.where}: a rewrite of {node.op.name} gives {len(outputs)} tensors,"
                        f" not {len(node.outputs)}"
                    )
                break
        else:
            return outputs
    raise GraphError(f"{node.where}: the rules rewrite {node.op.name} without an end")
