"""Sums and joins over tensor-parallel ranks, as layers that speak NCCL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.network import Tensor, annotate
from paddock.graph import Node
from paddock.graph import ops as F

if TYPE_CHECKING:
    from paddock.engines.tensorrt.lowering import Lowering


def all_reduce(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return _collective(state, node, inputs[0], "ALL_REDUCE", "SUM")


def all_gather(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """Along the last axis; the layer joins along the first."""
    op = node.op
    assert isinstance(op, F.AllGather)
    rank = len(inputs[0].shape)
    turned = (rank - 1, *range(rank - 1))
    back = (*range(1, rank), 0)
    x = state.view(inputs[0], after=turned)
    return state.view(_collective(state, node, x, "ALL_GATHER", "NONE"), after=back)


def reduce_scatter(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """Along the last axis; the layer divides the first."""
    rank = len(inputs[0].shape)
    x = state.view(inputs[0], after=(rank - 1, *range(rank - 1)))
    made = _collective(state, node, x, "REDUCE_SCATTER", "SUM")
    return state.view(made, after=(*range(1, rank), 0))


def broadcast(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    return _collective(state, node, inputs[0], "BROADCAST", "NONE", root=0)


def _collective(
    state: Lowering, node: Node, x: Tensor, operation: str, reduction: str, *, root: int = -1
) -> Tensor:
    """`root`: the rank that the others hear, -1 where there is none."""
    network = state.network
    if state.ranks < 2:
        raise BuildError(f"{node.where}: {node.op.name} among one rank; say mesh.tp of the build")
    layer = network.layer(
        "dist_collective",
        x,
        network.enum("CollectiveOperation", operation),
        network.enum("ReduceOperation", reduction),
        root,
        list(range(state.ranks)),
    )
    network.set(layer, "num_ranks", state.ranks)
    annotate(layer, operation=operation, ranks=state.ranks)  # the layer tells neither
    return network.output(layer)
