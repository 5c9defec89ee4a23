"""Compute once what several layers ask for, e.g. rotary angles."""

from paddock.graph.graph import Graph, use_graph
from paddock.graph.tensor import Tensor


def merge_equal(graph: Graph) -> Graph:
    """One node for equal ops on the same operands; ops with effects are never merged."""
    result = Graph(graph.dtype)
    new: dict[int, Tensor] = {}
    known: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
    with use_graph(result):
        for node in graph.nodes:
            inputs = tuple(new[id(t)] for t in node.inputs)
            # 1 == 1.0 and True == 1 in Python: the types of attributes tell ops apart, too.
            key = (type(node.op), repr(node.op), *map(id, inputs))
            if key not in known or node.op.has_effects:
                with result.at(node):
                    result.insert(node.op, inputs)
                known[key] = result.nodes[-1].outputs
            for old, tensor in zip(node.outputs, known[key], strict=True):
                new[id(old)] = tensor
        result.outputs = tuple(new[id(t)] for t in graph.outputs)
    return result
