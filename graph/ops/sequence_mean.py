"""Means over whole sequences."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Tensor, TensorType


@dataclass(frozen=True)
class SequenceMean(Op):
    """Every token gets the mean of its sequence: x [tokens, size], starts [sequences + 1] -> x's.

    As many rows as before, so that what picks tokens behind it need not know of it.
    """

    def infer(self, x: TensorType, sequence_starts: TensorType) -> TensorType:
        if x.rank != 2 or not x.dtype.is_float:
            raise GraphError(f"expected floats [tokens, size]: {x}")
        if sequence_starts.rank != 1 or not sequence_starts.dtype.is_index:
            raise GraphError(f"expected integers along one axis: {sequence_starts}")
        return x

    def compute(self, x: Array, sequence_starts: Array) -> Array:
        wide = widen(x)
        out = np.empty_like(wide)
        for start, stop in pairwise(sequence_starts):
            out[start:stop] = wide[start:stop].mean(0)
        return out.astype(x.dtype)


def sequence_mean(x: Tensor, sequence_starts: Tensor) -> Tensor:
    """x: [tokens, size], sequence_starts: [sequences + 1] -> [tokens, size]."""
    return SequenceMean()(x, sequence_starts)
