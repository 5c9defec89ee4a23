"""Run one op on the GPU and by its NumPy definition."""

from __future__ import annotations

from typing import Any

import numpy as np

from paddock.engines.cuda.buckets import Bucket
from paddock.engines.cuda.device import Instruction, StoredWeight
from paddock.engines.cuda.gpu import GPU
from paddock.engines.cuda.launching import Sized
from paddock.engines.cuda.lowering import scratch
from paddock.engines.cuda.session import E4M3
from paddock.graph import Array, DType, Op
from paddock.graph.tensor import TensorType, fixed


def type_of(array: Array) -> TensorType:
    kind = next(k for k in DType if k.numpy == array.dtype)
    return TensorType(kind, array.shape)


def computed(
    gpu: GPU,
    op: Op,
    inputs: list[Array],
    *,
    stored: StoredWeight | None = None,
    caches: tuple[int, ...] = (),
    states: tuple[int, ...] = (),
    bucket: Bucket | None = None,
    gives_e4m3: bool = False,
    takes_e4m3: bool = False,
) -> list[Array]:
    """The op's results, then its caches and states (operands of these numbers) as it left them.

    `stored` takes the place of operand 1. What is to be written is filled with NaN first.
    """
    # A cache may be in e4m3; in the graph it has the type of what is written there.
    types = tuple(
        TensorType(type_of(inputs[0]).dtype, x.shape) if x.dtype == E4M3 else type_of(x)
        for x in inputs
    )
    singles = 0 if bucket is None else bucket.singles
    result = op.infer(*types)
    results = result if isinstance(result, tuple) else (result,)
    values: list[Any] = []
    for i, x in enumerate(inputs):
        if i in caches:
            held = gpu.cache(x.shape, x.dtype)
            with gpu.stream:
                bits = np.uint8 if x.dtype == E4M3 else x.dtype
                held[...] = gpu.upload(np.ascontiguousarray(x.view(bits).transpose(0, 2, 1, 3)))
            values.append(held)
        else:
            values.append(gpu.upload(x))
    if stored is not None:
        values[1] = stored
    outputs = [_poisoned(gpu, fixed(t.shape), t.dtype.numpy) for t in results]
    rooms = [_poisoned(gpu, *room) for room in scratch(Sized(op, types, stored, singles))]
    with gpu.stream:
        one = Instruction(op, types, values, outputs, rooms, bucket=bucket)
        one.gives_e4m3, one.takes_e4m3 = gives_e4m3, takes_e4m3
        gpu.execute([one])
        gpu.stream.synchronize()
        made = [gpu.cupy.asnumpy(x) for x in outputs]
        made += [
            gpu.cupy.asnumpy(values[i]).transpose(0, 2, 1, 3).view(inputs[i].dtype) for i in caches
        ]
        made += [gpu.cupy.asnumpy(values[i]) for i in states]
    return made


def _poisoned(gpu: GPU, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    made = gpu.zeros(shape, dtype)
    with gpu.stream:
        made.view(np.uint8)[...] = 0xFF
    return made


def worst(found: Array, wanted: Array) -> float:
    """The largest difference over the largest magnitude."""
    f, w = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert f.shape == w.shape
    if not np.isfinite(f).all():
        return float("inf")
    return float(np.abs(f - w).max() / max(np.abs(w).max(), 1e-30))
