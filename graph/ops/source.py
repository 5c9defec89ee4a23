"""Where values come from: the step's inputs, weights, caches."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from paddock.graph.dtype import Array, DType
from paddock.graph.errors import GraphError
from paddock.graph.graph import current_graph
from paddock.graph.mesh import Mesh
from paddock.graph.op import Op
from paddock.graph.parameter import STORED, Cache, Parameter, QuantFormat, State
from paddock.graph.tensor import BLOCK_SIZE, BLOCKS, SLOTS, Shape, Tensor, TensorType, fixed


@dataclass(frozen=True)
class Source(Op, abstract=True):
    """A value that an engine feeds from outside, under a name."""

    key: str
    dtype: DType
    shape: Shape

    fed_by: ClassVar[str] = "the step"

    @property
    def feed(self) -> tuple[str, ...]:
        """What tells it from the other sources of a graph; nodes of one feed have one type."""
        return self.name, self.key

    def infer(self) -> TensorType:
        if not self.key:
            raise GraphError(
                "it has no name: a Parameter, Cache or State is found where it is an attribute of a"
                " Module, and a Module where it is one or stands in a ModuleList"
            )
        if any(isinstance(n, int) and n < 1 for n in self.shape):
            raise GraphError(
                f"{self.key!r}: {TensorType(self.dtype, self.shape)} has an empty axis"
            )
        return TensorType(self.dtype, self.shape)

    def compute(self) -> Array:
        raise GraphError(f"{self.key!r} has no value of its own: {self.fed_by} feeds it")

    @property
    def noted_attributes(self) -> dict[str, Any]:
        """Less type and shape, which a dump shows anyway."""
        noted = super().noted_attributes
        return {k: v for k, v in noted.items() if k not in ("dtype", "shape")}


@dataclass(frozen=True)
class Input(Source):
    """An array of the step, e.g. `token_ids`."""


@dataclass(frozen=True)
class Weight(Source):
    """This rank's share of a slot as it is stored.

    `parts` names the neighbouring segments of rows where several projections are fused in it;
    `part` is set where the node stands for one of them alone.
    """

    parts: tuple[tuple[str, int], ...] = ()
    part: str = ""

    fed_by: ClassVar[str] = "the bound weights"

    @property
    def feed(self) -> tuple[str, ...]:
        return self.name, self.key, self.part

    def infer(self) -> TensorType:
        if self.parts and (
            not self.shape
            or self.shape[0] != sum(rows for _, rows in self.parts)
            or any(rows < 1 for _, rows in self.parts)
        ):
            raise GraphError(
                f"{self.key!r}: the parts {self.parts} are not the rows of {self.shape}"
            )
        return super().infer()


@dataclass(frozen=True)
class CacheBlocks(Source):
    """The blocks of one cache slot: [blocks, block_size, *shape of a token]. Ops write into it."""

    fed_by: ClassVar[str] = "the runtime"


@dataclass(frozen=True)
class StateSlots(Source):
    """The states of one layer: [slots, *shape of a sequence's]. Ops read and write their rows."""

    fed_by: ClassVar[str] = "the runtime"


@dataclass(frozen=True)
class Fill(Op):
    """A tensor of one value: the scale of a norm that has none of its own, an offset."""

    value: float
    dtype: DType
    shape: tuple[int, ...] = ()

    def infer(self) -> TensorType:
        if not (self.dtype.is_float or self.dtype.is_index):
            raise GraphError(f"expected floats, i64 or i32, not {self.dtype}")
        if any(size < 1 for size in self.shape):
            raise GraphError(f"{list(self.shape)} has an empty axis")
        if self.dtype.is_index and self.value != int(self.value):
            raise GraphError(f"{self.value} is no whole number, as {self.dtype} holds")
        return TensorType(self.dtype, self.shape)

    def compute(self) -> Array:
        return np.full(self.shape, self.value, self.dtype.numpy)


@dataclass(frozen=True)
class Dequantize(Op):
    """Stored [rows, columns] times scales [rows, columns / group] -> weights [rows, columns].

    Stored are integers, or e4m3 (Micikevicius et al. 2022, arxiv.org/abs/2209.05433). One scale a
    row where there is one group. Experts' weights have an axis in front.
    """

    dtype: DType

    def infer(self, values: TensorType, scales: TensorType) -> TensorType:
        if values.rank not in (2, 3) or values.dtype not in STORED:
            raise GraphError(f"expected integers or e4m3, of 2 or 3 axes: {values}, {scales}")
        if scales.rank != values.rank:
            raise GraphError(f"expected scales of as many axes as integers: {values}, {scales}")
        if not (self.dtype.is_float and scales.dtype.is_float):
            raise GraphError(
                f"expected floats for the scales and the result: {scales}, {self.dtype}"
            )
        if scales.shape[:-1] != values.shape[:-1] or values.size(-1) % scales.size(-1):
            raise GraphError(f"scales {scales} do not divide the integers {values} into groups")
        return TensorType(self.dtype, values.shape)

    def compute(self, values: Array, scales: Array) -> Array:
        # f32 holds the product of 8 bits and the 11 of an f16 scale exactly.
        groups = values.astype(np.float32).reshape(*scales.shape, -1)
        weights = groups * scales.astype(np.float32)[..., None]
        return weights.reshape(values.shape).astype(self.dtype.numpy)


def input_tensor(key: str, dtype: DType, *shape: object) -> Tensor:
    return Input(key, dtype, tuple(shape))()  # type: ignore[arg-type]


def parameter(slot: Parameter, mesh: Mesh, dtype: DType) -> Tensor:
    """A rank's share of a slot: a weight, or integers and scales under a `dequantize`."""
    shape = slot.local_shape(mesh)
    parts: tuple[tuple[str, int], ...] = ()
    if slot.shard is not None and slot.shard.dim == 0 and len(slot.parts) > 1:
        parts = tuple(slot.shard.parts.local(mesh).sizes.items())
    once = current_graph().insert_once
    if slot.quant is None:
        return once(Weight(slot.name, slot.dtype or dtype, shape, parts))
    try:
        scales_shape = scale_shape(shape, slot.quant)
    except GraphError as error:
        raise GraphError(f"{slot.name}: {error}") from None
    values = once(Weight(slot.name, slot.quant.dtype, shape, parts))
    scales = once(Weight(scale_name(slot.name), slot.quant.scale, scales_shape, parts))
    tensor: Tensor = Dequantize(dtype)(values, scales)
    return tensor


def fill(value: float, dtype: DType, *shape: int) -> Tensor:
    """[*shape] of one value; made once however many layers read it."""
    return current_graph().insert_once(Fill(value, dtype, shape))


def scale_name(name: str) -> str:
    """Where the scales of a quantized slot are stored: `...q_proj.weight` -> `...q_proj.scale`."""
    return f"{name.removesuffix('.weight')}.scale"


def scale_shape(shape: Shape, quant: QuantFormat) -> tuple[int, ...]:
    """[..., rows, groups]. Raises `GraphError` where the columns are not whole groups."""
    *rows, columns = fixed(shape)
    if quant.group is None:
        return *rows, 1
    if columns % quant.group:
        raise GraphError(
            f"{columns} columns are not whole groups of {quant.group}; choose a group that"
            f" divides {columns}, or quantize per row"
        )
    return *rows, columns // quant.group


def cache(slot: Cache, mesh: Mesh, dtype: DType) -> Tensor:
    shape: Shape = (BLOCKS, BLOCK_SIZE, *slot.local_shape(mesh))
    return current_graph().insert_once(CacheBlocks(slot.name, dtype, shape))


def state(slot: State, mesh: Mesh, dtype: DType) -> Tensor:
    shape: Shape = (SLOTS, *slot.local_shape(mesh))
    return current_graph().insert_once(StateSlots(slot.name, dtype, shape))


def split_parts(tensor: Tensor) -> tuple[Tensor, ...] | None:
    """One tensor for each fused part of a weight, or None where it has no parts of its own."""
    op = tensor.node.op
    if isinstance(op, Weight) and op.parts:
        return tuple(
            current_graph().insert_once(Weight(op.key, op.dtype, (rows, *op.shape[1:]), part=part))
            for part, rows in op.parts
        )
    if isinstance(op, Dequantize):
        integers, scales = (split_parts(t) for t in tensor.node.inputs)
        if integers is not None and scales is not None:
            return tuple(op(*pair) for pair in zip(integers, scales, strict=True))
    return None
