"""Kernels' launches held against their source, without a GPU: arguments by number, order and type.

A `LaunchRecorder` stands where the GPU does when an op is lowered. It computes nothing: what
kernels compute is shown by the tests marked `gpu`. It shows that every op of a graph has its
kernels, that each is given what its CUDA source declares, and which variants are compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from paddock.engines.cuda.buckets import Bucket
from paddock.engines.cuda.device import Instruction, StoredWeight
from paddock.engines.cuda.fused import FusedLinear
from paddock.engines.cuda.gpu import KERNELS
from paddock.engines.cuda.launching import Sized
from paddock.engines.cuda.lowering import emit, scratch
from paddock.engines.cuda.program import CONSTANT, rounded_once
from paddock.graph import Array, Graph, Tensor
from paddock.graph.ops import CacheBlocks
from paddock.graph.tensor import BLOCK_SIZE, BLOCKS, SLOTS, Node, TensorType, fixed

_NUMBERS = {"int": np.int32, "i64": np.int64, "float": np.float32}
_POINTERS = {"int": "int32", "i64": "int64", "float": "float32", "double": "float64"}
_ELEMENTS = ("float32", "float16", "bfloat16")  # by TYPE, WEIGHT and STATE
_DEFINED = {"T": "TYPE", "W": "WEIGHT", "S": "STATE", "C": "TYPE"}
SHARED = 227 << 10  # bytes of a block on Hopper
Variant = tuple[str, tuple[tuple[str, int], ...]]


class Placed:
    """An array of a step: shape and type, at an address."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.ndim, self.itemsize = len(shape), dtype.itemsize
        self.size = prod(shape)
        self.nbytes = self.size * self.itemsize
        strides = [prod(shape[i + 1 :]) * self.itemsize for i in range(len(shape))]
        self.strides = tuple(strides)
        self.data = SimpleNamespace(ptr=1 << 20)

    def __getitem__(self, index: int | slice) -> Placed:
        if isinstance(index, slice):
            count = len(range(*index.indices(self.shape[0])))
            return Placed((count, *self.shape[1:]), self.dtype)
        return Placed(self.shape[1:], self.dtype)

    def reshape(self, *shape: int) -> Placed:
        known = prod(n for n in shape if n != -1)
        return Placed(tuple(self.size // known if n == -1 else n for n in shape), self.dtype)

    def view(self, dtype: Any) -> Placed:
        last = self.shape[-1] * self.itemsize // np.dtype(dtype).itemsize
        return Placed((*self.shape[:-1], last), np.dtype(dtype))


@cache
def declared(source: str, name: str) -> tuple[tuple[str, bool], ...]:
    """A kernel's parameters: the type, and whether it is a pointer."""
    text = (KERNELS / f"{source}.cu").read_text("utf-8")
    bounds = r"(?:__launch_bounds__\([^)]*\) )?"
    found = re.search(rf'extern "C" __global__ void {bounds}{name}\(([^)]*)\)', text)
    assert found is not None, f"{source}.cu has no kernel {name}"
    parameters = []
    for one in found[1].replace("\n", " ").split(","):
        words = one.replace("const", "").replace("*", " * ").split()
        parameters.append((words[0], "*" in words))
    return tuple(parameters)


class LaunchRecorder:
    """What lowerings ask of a `GPU`, as far as it is kernels."""

    processors, capability, cudnn, max_blocks = 132, 90, None, 64

    def __init__(self) -> None:
        self.variants: set[Variant] = set()
        self.launches: list[str] = []
        self.counters = Placed((1 << 16,), np.dtype(np.int32))
        self.best = Placed((1 << 16,), np.dtype(np.uint64))

    def function(self, source: str, name: str, **defines: int) -> Any:
        self.variants.add((source, tuple(sorted(defines.items()))))
        return source, name, defines

    def launch(
        self, function: Any, grid: Sequence[int], block: int, *arguments: Any, shared: int = 0
    ) -> None:
        source, name, defines = function
        wanted = declared(source, name)
        assert len(arguments) == len(wanted), f"{name}: {len(arguments)} for {len(wanted)}"
        for n, ((kind, pointer), given) in enumerate(zip(wanted, arguments, strict=True)):
            where = f"{name}, argument {n} ({kind})"
            if not pointer:
                assert type(given) is _NUMBERS[kind], f"{where}: {type(given)}"
            elif given is None or isinstance(given, int):
                assert given != 0, where
            elif kind == "C" and defines.get("CACHE8"):
                assert given.dtype.itemsize == 1, f"{where} e4m3: {given.dtype}"
            elif kind in _DEFINED:
                element = _ELEMENTS[defines[_DEFINED[kind]]]
                assert given.dtype.name == element, f"{where} {element}: {given.dtype}"
            elif kind in _POINTERS:
                assert given.dtype.name == _POINTERS[kind], f"{where}: {given.dtype}"
        assert 0 < block <= 1024
        assert block % 32 == 0
        assert 0 <= shared <= SHARED, f"{name}: {shared} bytes of shared memory"
        sizes = (*grid, 1, 1)[:3]
        assert all(
            0 <= n < limit for n, limit in zip(sizes, (1 << 31, 1 << 16, 1 << 16), strict=True)
        )
        self.launches.append(name)

    def matmul(self, shape: Any, x: Any, weight: Any, y: Any, **more: Any) -> None:
        assert x.shape == (shape.rows, shape.inputs)
        assert weight.shape == (shape.outputs, shape.inputs)
        assert y.shape == (shape.rows, shape.outputs)
        assert y.dtype == shape.result.numpy
        self.launches.append("matmul")

    def constant(self, values: tuple[float, ...]) -> Placed:
        return Placed((len(values),), np.dtype(np.float32))

    def lookup(self, key: Hashable, make: Callable[[], Array]) -> Placed:
        return Placed(make().shape, np.dtype(np.int32))

    def clear(self, array: Placed) -> None:
        self.launches.append("clear")


def record(
    graph: Graph,
    bucket: Bucket,
    *,
    block_size: int = 16,
    cache8: bool = False,
    fp8: bool = False,
) -> LaunchRecorder:
    """Every op of a built graph lowered for a step of this size; `fp8`: the weights of products."""
    sizes = bucket.sizes(table=64) | {BLOCKS: 32, BLOCK_SIZE: block_size, SLOTS: bucket.sequences}
    recorder = LaunchRecorder()
    values: dict[Tensor, Any] = {}

    def sized(node: Node) -> Sized:
        types = tuple(
            TensorType(t.dtype, tuple(d if isinstance(d, int) else sizes[d] for d in t.shape))
            for t in node.inputs
        )
        weight = values.get(node.inputs[1]) if len(node.inputs) > 1 else None
        stored = weight if isinstance(weight, StoredWeight) else None
        return Sized(node.op, types, stored, bucket.singles)

    if fp8:
        for node in graph.find(FusedLinear):
            weight = node.inputs[1]
            rows, columns = fixed(weight.shape)
            if rows % 16 == columns % 16 == 0:
                values[weight] = StoredWeight(
                    "f8",
                    Placed((rows, columns), np.dtype(np.uint8)),
                    Placed((rows,), np.dtype(np.float32)),
                    weight.dtype,
                    (rows, columns),
                )
    rounded = rounded_once(graph, sized)
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor in values:
                continue
            shape = tuple(d if isinstance(d, int) else sizes[d] for d in tensor.type.shape)
            if isinstance(node.op, CacheBlocks):  # kernels have a head's tokens together
                shape = (shape[0], shape[2], shape[1], shape[3])
            eighths = cache8 and isinstance(node.op, CacheBlocks)
            kind = np.dtype(np.uint8) if eighths else tensor.dtype.numpy
            values[tensor] = Placed(shape, kind)
        if isinstance(node.op, CONSTANT):
            continue
        rooms = scratch(sized(node))
        one = Instruction(
            node.op,
            tuple(t.type for t in node.inputs),
            [values[t] for t in node.inputs],
            [values[t] for t in node.outputs],
            [Placed(*room) for room in rooms],
            node.where,
            bucket,
            gives_e4m3=node.outputs[0] in rounded,
            takes_e4m3=bool(node.inputs) and node.inputs[0] in rounded,
        )
        try:
            emit(recorder, one)  # type: ignore[arg-type]
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"{one.name}: {node.op.name}: {error!r}") from error
    return recorder
