"""Pick the rows that somebody reads before computing on all of them.

Of a prompt's tokens only the last one's logits are read. What stands behind the last attention
(its output projection, the last MLP, the norms and residuals about them) is computed for that row
alone; llama.cpp does the same (`inp_out_ids` of its graphs).
"""

from collections import defaultdict

from paddock.graph.graph import Graph, use_graph
from paddock.graph.ops.shaping import Gather
from paddock.graph.passes.remove_dead import remove_dead
from paddock.graph.tensor import Dim, Node, Tensor


def select_rows_early(graph: Graph) -> Graph:
    """A gather of rows moves before the ops that compute row by row, if nobody reads the others.

    That is f(x, w)[rows] -> f(x[rows], w), through as many ops as allow it; an op's result stays
    whole where anything but gathers of the same rows needs it.
    """
    graph = remove_dead(graph)  # what nobody needs asks for no rows
    asked = _rows_asked(graph)
    if not asked:
        return graph
    result = Graph(graph.dtype)
    new: dict[int, Tensor] = {}  # a tensor's copy, with all its rows or with those that are asked
    picked: dict[tuple[int, int], Tensor] = {}

    def some_rows(tensor: Tensor, rows: Tensor, reader: Node) -> Tensor:
        if id(tensor.node) in asked or tensor.shape[:1] != (_axis(reader),):
            return new[id(tensor)]
        key = id(tensor), id(rows)
        if key not in picked:
            with result.at(reader):
                picked[key] = Gather()(new[id(tensor)], new[id(rows)])
        return picked[key]

    with use_graph(result):
        for node in graph.nodes:
            rows = asked.get(id(node))
            if rows is not None:
                inputs = tuple(some_rows(t, rows, node) for t in node.inputs)
            elif isinstance(node.op, Gather) and id(node.inputs[0].node) in asked:
                new[id(node.outputs[0])] = new[id(node.inputs[0])]
                continue
            else:
                inputs = tuple(new[id(t)] for t in node.inputs)
            with result.at(node):
                result.insert(node.op, inputs)
            for old, tensor in zip(node.outputs, result.nodes[-1].outputs, strict=True):
                new[id(old)] = tensor
        result.outputs = tuple(new[id(t)] for t in graph.outputs)
    return result


def _rows_asked(graph: Graph) -> dict[int, Tensor]:
    """By a node's id, the rows that suffice of what it computes, where some do."""
    readers: dict[int, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        for made_by in {id(t.node) for t in node.inputs}:
            readers[made_by].append(node)
    position = {id(node): i for i, node in enumerate(graph.nodes)}
    whole = {id(t.node) for t in graph.outputs}
    asked: dict[int, Tensor] = {}
    for node in reversed(graph.nodes):
        if id(node) in whole or not _is_by_rows(node):
            continue
        wanted = [_wanted(node, reader, asked) for reader in readers[id(node)]]
        rows = wanted[0]
        if rows is None or any(other is not rows for other in wanted):
            continue
        if position[id(rows.node)] < position[id(node)]:
            asked[id(node)] = rows
    return asked


def _wanted(node: Node, reader: Node, asked: dict[int, Tensor]) -> Tensor | None:
    """Which rows of what `node` computes its reader needs; None where it needs all."""
    if id(reader) in asked:
        return asked[id(reader)] if _axis(reader) == _axis(node) else None
    if isinstance(reader.op, Gather) and reader.inputs[0].node is node:
        return reader.inputs[1] if reader.inputs[1].node is not node else None
    return None


def _is_by_rows(node: Node) -> bool:
    """Whether it computes each row of one symbolic axis from the same rows of its operands."""
    axis = _axis(node)
    return (
        node.op.is_by_rows
        and isinstance(axis, Dim)
        and all(t.shape[:1] == (axis,) for t in node.outputs)
        and any(t.shape[:1] == (axis,) for t in node.inputs)
    )


def _axis(node: Node) -> int | Dim | None:
    """The first axis of what it computes."""
    shape = node.outputs[0].shape
    return shape[0] if shape else None
