"""Replace the ops that an engine does not know by what they stand for."""

from collections.abc import Callable

from paddock.graph.errors import GraphError
from paddock.graph.graph import Graph, use_graph
from paddock.graph.op import Op
from paddock.graph.tensor import Node, Tensor

# An expansion may itself hold ops that the engine does not know; one that never ends is a mistake.
_DEPTH = 100


def expand(graph: Graph, engine: str, lowers: Callable[[Op], bool]) -> Graph:
    """A graph of ops that `engine` can run, each other op replaced by its `expand`.

    `lowers` says what the engine's own table holds; an op with `engine` among its `lowerings`
    stays, too. Raises `GraphError` naming the op, its place, and the engines that it has, where
    there is neither.
    """

    def runs(op: Op) -> bool:
        return lowers(op) or engine in op.lowerings

    for _ in range(_DEPTH):
        foreign = [node for node in graph.nodes if not runs(node.op)]
        if not foreign:
            return graph
        graph = _expanded(graph, engine, runs)
    raise GraphError(
        f"{foreign[0].where}: the expansion of {foreign[0].op.name} for {engine} does not end"
    )


def _expanded(graph: Graph, engine: str, runs: Callable[[Op], bool]) -> Graph:
    result = Graph(graph.dtype)
    new: dict[int, Tensor] = {}
    with use_graph(result):
        for node in graph.nodes:
            inputs = tuple(new[id(t)] for t in node.inputs)
            with result.at(node):
                if runs(node.op):
                    result.insert(node.op, inputs)
                    outputs = result.nodes[-1].outputs
                else:
                    outputs = _expansion(node, inputs, engine)
            new.update({id(old): t for old, t in zip(node.outputs, outputs, strict=True)})
        result.outputs = tuple(new[id(t)] for t in graph.outputs)
    return result


def _expansion(node: Node, inputs: tuple[Tensor, ...], engine: str) -> tuple[Tensor, ...]:
    made = node.op.expand(*inputs)
    if made is None:
        has = [*node.op.lowerings]
        if node.op.cuda_source is not None:
            has.append("cuda")
        if type(node.op).compute is not Op.compute:
            has.append("reference")
        engines = f"it has {', '.join(sorted(has))}" if has else "it has none"
        raise GraphError(
            f"{node.where}: the engine {engine} does not know the op {node.op.name}, which gives no"
            f" expansion and no implementation for it ({engines}); choose another engine, or give"
            f" the op {type(node.op).__qualname__} an `expand` or a `lowerings[{engine!r}]`"
        )
    outputs = made if isinstance(made, tuple) else (made,)
    found, expected = [t.type for t in outputs], [t.type for t in node.outputs]
    if found != expected:
        raise GraphError(
            f"{node.where}: the expansion of {node.op.name} gives {', '.join(map(str, found))}, its"
            f" rule {', '.join(map(str, expected))}"
        )
    return outputs
