"""From a model to its graph, for one rank."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from paddock.graph import DType, Graph, GraphError, Mesh, Module, Tensor, use_graph, use_mesh
from paddock.graph import ops as F
from paddock.graph.ops import Send
from paddock.graph.passes import STANDARD, run_passes
from paddock.graph.tensor import ROWS, TOKENS, fixed
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


@dataclass(frozen=True)
class Watched:
    """What passes into a module or out of it: columns of the output of a graph that shows it.

    Each tensor has its own columns; all its axes behind the tokens' are one.
    """

    path: str
    way: Literal["in", "out"]
    columns: tuple[slice, ...]


def trace_modules(
    model: Module, *, dtype: DType = DType.F32, max_context: int
) -> tuple[Graph, list[Watched]]:
    """The model with all that passes between its modules in the place of its output.

    The output is f32 [rows, columns], so any engine computes it as it computes logits. What
    modules pass on is in the order in which they do; the last is the model's own output, whose
    path is empty. Only the first tensor that a module is given is watched.
    """
    model.assign_names()
    columns: dict[Tensor, slice] = {}
    shown: list[Tensor] = []
    watched = []
    with use_mesh(Mesh()), use_graph(Graph(dtype)) as graph:
        step = Step.inputs(max_context)
        graph.note("out", (model(step),))
        width = 0
        for passage in list(graph.passages):
            some = [t for t in passage.tensors if _is_of_tokens(t)]
            for tensor in some[:1] if passage.way == "in" else some:
                if tensor not in columns:
                    size = prod(fixed(tensor.shape[1:]))
                    columns[tensor] = slice(width, width + size)
                    width += size
                    shown.append(_rows(tensor, size, step))
            watched.append(
                Watched(
                    passage.path,
                    passage.way,
                    tuple(columns[t] for t in passage.tensors if t in columns and t in some),
                )
            )
        graph.outputs = (F.concat(*shown),)
    return run_passes(graph, STANDARD), [w for w in watched if w.columns]


def _is_of_tokens(tensor: Tensor) -> bool:
    return tensor.dtype.is_float and tensor.type.rank > 1 and tensor.shape[0] in (TOKENS, ROWS)


def _rows(tensor: Tensor, size: int, step: Step) -> Tensor:
    """f32 [rows, size]."""
    x = F.reshape(tensor, size)
    return F.cast(F.gather(x, step.logit_rows) if x.shape[0] == TOKENS else x, DType.F32)
