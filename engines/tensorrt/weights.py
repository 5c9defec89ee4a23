"""The ways for weights to come into a network."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from paddock.engines.protocol import BuildError, WeightSource
from paddock.engines.tensorrt.network import Tensor
from paddock.graph import Array, DType
from paddock.graph.ops import Weight
from paddock.graph.tensor import fixed

if TYPE_CHECKING:
    from paddock.engines.tensorrt.lowering import Lowering, NetworkWeights


EXTERNAL, EMBEDDED, REFITTABLE = "external", "embedded", "refittable"


class ExternalWeights:
    """Network inputs: the plan holds no weights, and one file of them serves all plans."""

    def tensor(self, state: Lowering, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        return state.feed(input_name(weight), "weight", weight.dtype, *shape)


class EmbeddedWeights:
    """Constants over the bound weights, which the compiler copies into the plan.

    Constants are only referred to until the build is done; the network keeps them. `refittable`
    ones are known by name in the plan, where others can take their place (`refit.py`).
    """

    def __init__(self, source: WeightSource, *, refittable: bool = False) -> None:
        self._source, self._refittable = source, refittable

    def tensor(self, state: Lowering, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        def make() -> Tensor:
            array = stored(self._source, weight)
            name = input_name(weight) if self._refittable else None
            return state.network.constant(array, weight.dtype, shape, refit_as=name)

        return state.once(("weight", input_name(weight)), make)


def weights_in_plan(how: str, source: WeightSource | None) -> NetworkWeights:
    """By the setting `engine.weights`."""
    if how == EXTERNAL:
        return ExternalWeights()
    assert source is not None
    return EmbeddedWeights(source, refittable=how == REFITTABLE)


def input_name(weight: Weight) -> str:
    """The name of the network input of a weight, or of a part of one."""
    return f"{weight.key}#{weight.part}" if weight.part else weight.key


def nbytes(weight: Weight) -> int:
    """Of a weight as it is stored."""
    return prod(fixed(weight.shape)) * weight.dtype.bits // 8


def stored(source: WeightSource, weight: Weight) -> Array:
    """The bytes of a weight as they lie in memory, i4 packed two a byte.

    Raises `BuildError` where the bound weights are not what the graph was built for.
    """
    # The joined parts of a slot that lies in pieces are a copy; integers never lie so.
    joined = len(weight.parts) > 1 and weight.dtype.is_float
    array = source.whole(weight.key) if joined else source.stored(weight.key, weight.part)
    whole = fixed(weight.shape)
    columns = whole[-1] // 2 if weight.dtype is DType.I4 else whole[-1]
    kind = np.dtype(np.uint8) if weight.dtype is DType.I4 else weight.dtype.numpy
    if array.shape != (*whole[:-1], columns) or array.dtype != kind:
        raise BuildError(
            f"{weight.key}: the engine expects {weight.dtype}{list(whole)}, the bound weights"
            f" hold {array.dtype}{list(array.shape)}; build the engine again"
        )
    return np.ascontiguousarray(array)
