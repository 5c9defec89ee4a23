"""From a model to its graph, for one rank."""

from paddock.graph import DType, Graph, GraphError, Mesh, Module, use_graph, use_mesh
from paddock.graph.ops import Send
from paddock.graph.passes import STANDARD, run_passes
from paddock.layers.step import Step


def trace(
    model: Module, *, dtype: DType = DType.F32, max_context: int, mesh: Mesh | None = None
) -> Graph:
    """What this rank computes in a step; `dtype` is that of activations and unquantized weights.

    The output is f32 logits [rows, vocab], or, off the last pipeline stage, what is sent on.
    Raises `GraphError` naming the layer and its line.
    """
    if max_context < 1:
        raise GraphError(f"max_context is {max_context}, expected 1 token at least")
    model.assign_names()
    with use_mesh(mesh or Mesh()) as mesh, use_graph(Graph(dtype)) as graph:
        output = model(Step.inputs(max_context))
        sends = list(graph.find(Send))
        graph.outputs = sends[0].outputs if sends else (output,)
    return run_passes(graph, STANDARD)
