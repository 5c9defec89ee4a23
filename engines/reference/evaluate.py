"""Evaluate a graph by the NumPy definitions of its ops."""

from collections.abc import Callable, Mapping

from paddock.graph import Array, Graph, GraphError, Node
from paddock.graph.ops import Collective, Communicator, Source


def evaluate(
    graph: Graph,
    values: Mapping[Source, Array],
    *,
    communicator: Communicator | None = None,
    observe: Callable[[Node, tuple[Array, ...]], None] | None = None,
) -> tuple[Array, ...]:
    """The graph's outputs. `values` holds inputs, weights and caches; caches are written.

    A `communicator` is needed where the graph has collectives. `observe` sees every node's values
    as they are made. Values are dropped after their last use.
    """
    last_use = {id(t): i for i, node in enumerate(graph.nodes) for t in node.inputs}
    last_use.update({id(t): len(graph.nodes) for t in graph.outputs})
    made: dict[int, Array] = {}
    for i, node in enumerate(graph.nodes):
        inputs = [made[id(t)] for t in node.inputs]
        match node.op:
            case Source() as source:
                result: Array | tuple[Array, ...] = _fed(source, values)
            case Collective() as collective:
                if communicator is None:
                    raise GraphError(f"{node.where}: {node.op.name} needs a communicator")
                result = collective.exchange(communicator, *inputs)
            case _:
                result = node.op.compute(*inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        if observe is not None:
            observe(node, outputs)
        for tensor, array in zip(node.outputs, outputs, strict=True):
            made[id(tensor)] = array
        for tensor in node.inputs:
            if last_use[id(tensor)] == i:
                made.pop(id(tensor), None)
    return tuple(made[id(t)] for t in graph.outputs)


def _fed(source: Source, values: Mapping[Source, Array]) -> Array:
    if source not in values:
        raise GraphError(f"{source.name} {source.key!r} was not given by {source.fed_by}")
    return values[source]
