"""A rank's graph cut at its collectives: graphs to compile, and what is exchanged between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paddock.graph import Graph, Node, Tensor, use_graph
from paddock.graph.ops import Collective, Dequantize, Input, Source


@dataclass(frozen=True)
class Piece:
    """A graph of its own, and the collective after it.

    `given` are the tensors of the whole graph that it reads and does not make, by the names of its
    inputs for them; `gives`, those that its outputs are.
    """

    graph: Graph | None  # None where there is nothing to compute between two collectives
    given: dict[str, Tensor]
    gives: tuple[Tensor, ...]
    exchange: Node | None


def cut(graph: Graph) -> list[Piece]:
    """The pieces of a graph in the order in which they run.

    Every rank of a stage has the same collectives in the same order. What follows from the step's
    inputs alone (rotary angles) is computed in each piece that reads it: that costs less than
    handing it over, and the compiler fuses it with what reads it.
    """
    cheap = _from_inputs(graph)
    places: dict[Tensor, int] = {}  # the piece that makes it
    made: list[list[Node]] = [[]]
    exchanges: list[Node | None] = []
    for node in graph.nodes:
        if isinstance(node.op, Collective):
            exchanges.append(node)
            made.append([])
        elif node not in cheap:
            places.update(dict.fromkeys(node.outputs, len(made) - 1))
            made[-1].append(node)
    exchanges.append(None)

    order = {node: i for i, node in enumerate(graph.nodes)}
    nodes: list[list[Node]] = []
    given: list[dict[str, Tensor]] = []
    gives: list[dict[Tensor, None]] = [{} for _ in made]
    for i, own in enumerate(made):
        exchange = exchanges[i]
        results = graph.outputs if exchange is None else exchange.inputs
        read = dict.fromkeys(t for node in own for t in node.inputs)
        own_results = [t for t in results if t.node in cheap and not isinstance(t.node.op, Input)]
        copies = _ancestors([t for t in (*read, *own_results) if t.node in cheap])
        nodes.append(sorted({*own, *copies}, key=order.__getitem__))
        outside = [t for t in read if t.node not in cheap and places.get(t, -1) != i]
        given.append({f"value_{order[t.node]}_{t.index}": t for t in outside})
        gives[i].update(dict.fromkeys(own_results))
        for tensor in (*outside, *results):
            if tensor in places:
                gives[places[tensor]][tensor] = None
    return [
        Piece(
            _graph(graph, nodes[i], given[i], tuple(gives[i])) if gives[i] else None,
            given[i],
            tuple(gives[i]),
            exchanges[i],
        )
        for i in range(len(made))
    ]


def _graph(
    whole: Graph, nodes: Sequence[Node], given: dict[str, Tensor], gives: Sequence[Tensor]
) -> Graph:
    """Some nodes of a graph as one of its own."""
    piece = Graph(whole.dtype)
    with use_graph(piece):
        new = {t: Input(name, t.dtype, t.shape)() for name, t in given.items()}
        for node in nodes:
            with piece.at(node):
                made = piece.insert(node.op, tuple(new[t] for t in node.inputs))
            outputs = made if isinstance(made, tuple) else (made,)
            new.update(zip(node.outputs, outputs, strict=True))
    piece.outputs = tuple(new[t] for t in gives)
    return piece


def _from_inputs(graph: Graph) -> set[Node]:
    """Sources and dequantized weights, and what is computed from the step's inputs alone."""
    found: set[Node] = set()
    light: set[Node] = set()
    for node in graph.nodes:
        if isinstance(node.op, Source | Dequantize):
            found.add(node)
            if isinstance(node.op, Input):
                light.add(node)
        elif not node.op.has_effects and all(t.node in light for t in node.inputs):
            found.add(node)
            light.add(node)
    return found


def _ancestors(tensors: Sequence[Tensor]) -> set[Node]:
    found: set[Node] = set()
    todo = [t.node for t in tensors]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [t.node for t in node.inputs]
    return found
