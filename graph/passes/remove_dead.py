"""Drop what no output needs."""

from paddock.graph.graph import Graph


def remove_dead(graph: Graph) -> Graph:
    """The same graph without nodes that no output depends on."""
    alive: set[int] = set()
    stack = [t.node for t in graph.outputs]
    while stack:
        node = stack.pop()
        if id(node) not in alive:
            alive.add(id(node))
            stack.extend(t.node for t in node.inputs)
    result = Graph(graph.dtype)
    result.nodes = [n for n in graph.nodes if id(n) in alive]
    result.outputs = graph.outputs
    return result
