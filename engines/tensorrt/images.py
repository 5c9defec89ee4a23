"""What a graph says of the images that a step brings."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from paddock.engines.tensorrt.bounds import Bounds
from paddock.graph import Graph, Tensor
from paddock.graph.ops import FoldRows, Gather, Input, ReplaceRows


def of_images(graph: Graph, bounds: Bounds) -> Bounds:
    """With how many patches an image has, where the graph sees any.

    A tower whose patches have learned positions says how many there are. Of others an image has as
    many as a step has tokens.
    """
    seen = next(graph.find(ReplaceRows), None)
    if seen is None:
        return bounds
    per_row = _patches_per_row(seen.inputs[1])
    tables = [
        node.inputs[0].type.size(0)
        for node in graph.find(Gather)
        if isinstance(op := node.inputs[1].node.op, Input) and op.key == "image_positions"
    ]
    most = min(tables, default=bounds.max_step_tokens)
    return replace(bounds, max_patches=max(most // per_row, 1) * per_row, patches_per_row=per_row)


def _patches_per_row(made: Tensor) -> int:
    """Of how many patches the model makes a row: what is folded on the way to it."""
    folds = []
    while made.node.inputs:
        if isinstance(made.node.op, FoldRows):
            folds.append(made.node.op.count)
        made = made.node.inputs[0]
    return prod(folds)
