"""Weights on the device: as they are stored, or in fewer bits where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from paddock.engines.cuda.device import Device, StoredWeight
from paddock.engines.cuda.fused import FusedLinear
from paddock.engines.protocol import BuildError, WeightSource
from paddock.graph import DType, Graph, Tensor
from paddock.graph.ops import Dequantize, Fill, Weight
from paddock.graph.tensor import fixed

# A dense matrix on the device -> the same in fewer bits; None: it stays as it is.
Shrink = Callable[[Any, DType, str], StoredWeight | None]


def constants(
    graph: Graph, weights: WeightSource, device: Device, shrink: Shrink | None = None
) -> dict[Tensor, Any]:
    """A device array, or a `StoredWeight`, for each tensor of the graph that is made of weights.

    `shrink` is offered the dense matrices that products alone read. Integers under a `Dequantize`
    that only products read stay integers; those that others read, too, are made dense.
    Raises `BuildError` where the weights are not those that the graph was built for.
    """
    readers: dict[Tensor, list[bool]] = {}
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            readers.setdefault(tensor, []).append(isinstance(node.op, FusedLinear) and i == 1)
    made: dict[Tensor, Any] = {}
    packed = {t for n in graph.find(Dequantize) for t in n.inputs}
    for node in graph.nodes:
        if isinstance(node.op, Weight):
            (tensor,) = node.outputs
            value = _load(node.op, weights, device, wait=shrink is not None)
            if tensor not in packed and shrink is not None and all(readers.get(tensor, [False])):
                smaller = shrink(value, node.op.dtype, node.op.key)
                value = value if smaller is None else smaller
            made[tensor] = value
        elif isinstance(node.op, Fill):
            made[node.outputs[0]] = device.upload(node.op.compute())
        elif isinstance(node.op, Dequantize):
            device.arrived()
            integers, scales = node.inputs
            shape = fixed(integers.shape)
            rows = prod(shape[:-1])  # of experts: one matrix below the other
            stored = StoredWeight(
                str(integers.dtype),
                made[integers].reshape(rows, -1),
                made[scales].reshape(rows, -1),
                node.op.dtype,
                (rows, shape[-1]),
            )
            (tensor,) = node.outputs
            if not all(readers.get(tensor, [False])):
                made[tensor] = device.dense(stored).reshape(shape)
            else:
                made[tensor] = stored
    device.arrived()
    return made


def _load(op: Weight, weights: WeightSource, device: Device, *, wait: bool) -> Any:
    if op.dtype is DType.I4:
        return device.upload(weights.stored(op.key, op.part), wait=wait)
    if op.parts and op.dtype.bits >= 8:
        # Part by part: a fused slot may lie in several places of the checkpoint.
        out = device.zeros(tuple(int(n) for n in op.shape if isinstance(n, int)), op.dtype.numpy)
        at = 0
        for part, rows in op.parts:
            array = _checked(weights.part(op.key, part), op, (rows, *op.shape[1:]))
            device.upload(array, out[at : at + rows], wait=False)
            at += rows
        if wait:
            device.arrived()
        return out
    array = weights.part(op.key, op.part) if op.part else weights.whole(op.key)
    return device.upload(_checked(array, op, op.shape), wait=wait)


def _checked(array: Any, op: Weight, shape: tuple[Any, ...]) -> Any:
    if array.shape != shape or array.dtype != op.dtype.numpy:
        raise BuildError(
            f"{op.key}: the engine expects {op.dtype}{list(shape)}, the bound weights hold"
            f" {np.dtype(array.dtype)}{list(array.shape)}; build the engine again"
        )
    return array
