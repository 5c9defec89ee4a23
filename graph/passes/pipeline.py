"""The passes, in the order in which they run."""

from collections.abc import Callable, Sequence

from paddock.graph.errors import GraphError
from paddock.graph.graph import Graph
from paddock.graph.passes import simplify
from paddock.graph.passes.merge_equal import merge_equal
from paddock.graph.passes.pattern import Rule, rewrite
from paddock.graph.passes.remove_dead import remove_dead
from paddock.graph.passes.select_rows_early import select_rows_early

# A function over graphs, or a list of (pattern, rewrite) under a name.
Pass = Callable[[Graph], Graph] | tuple[str, Sequence[Rule]]

STANDARD: list[Pass] = [
    remove_dead,
    ("simplify", simplify.RULES),
    merge_equal,
    select_rows_early,
    merge_equal,  # of the rows that were picked before
    remove_dead,
]


def run_passes(
    graph: Graph,
    passes: Sequence[Pass],
    after: Callable[[str, Graph], None] = lambda name, graph: None,
) -> Graph:
    """Apply each pass and verify what it leaves; `after` sees the graph behind each, for dumps."""
    graph.verify()
    for step in passes:
        name = step[0] if isinstance(step, tuple) else step.__name__
        graph = rewrite(graph, step[1]) if isinstance(step, tuple) else step(graph)
        try:
            graph.verify()
        except GraphError as error:
            raise GraphError(f"after the pass {name}: {error}") from None
        after(name, graph)
    return graph
