"""Where values come from: the step's inputs, weights, caches."""

from dataclasses import dataclass
from typing import Any, ClassVar

from paddock.graph.dtype import Array, DType
from paddock.graph.errors import GraphError
from paddock.graph.graph import current_graph
from paddock.graph.mesh import Mesh
from paddock.graph.op import Op
from paddock.graph.parameter import Cache, Parameter, QuantFormat
from paddock.graph.tensor import BLOCK_SIZE, BLOCKS, Shape, Tensor, TensorType


@dataclass(frozen=True)
class Source(Op):
    """A value that an engine feeds from outside, under a name."""

    key: str
    dtype: DType
    shape: Shape

    fed_by: ClassVar[str] = "the step"

    def infer(self) -> TensorType:
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


@dataclass(frozen=True)
class CacheBlocks(Source):
    """The blocks of one cache slot: [blocks, block_size, *shape of a token]. Ops write into it."""

    fed_by: ClassVar[str] = "the runtime"


@dataclass(frozen=True)
class Dequantize(Op):
    """Integers [rows, columns] times scales [rows, columns / group] -> weights [rows, columns].

    One scale a row where there is one group.
    """

    dtype: DType

    def infer(self, values: TensorType, scales: TensorType) -> TensorType:
        rows, columns = values.size(0), values.size(1)
        if scales.rank != 2 or scales.size(0) != rows or columns % scales.size(1):
            raise GraphError(f"scales {scales} do not divide the integers {values} into groups")
        return TensorType(self.dtype, values.shape)

    def compute(self, values: Array, scales: Array) -> Array:
        rows, columns = values.shape
        groups = values.astype(scales.dtype).astype("f4").reshape(rows, scales.shape[1], -1)
        weights = groups * scales.astype("f4")[..., None]
        return weights.reshape(rows, columns).astype(self.dtype.numpy)


def input_tensor(key: str, dtype: DType, *shape: object) -> Tensor:
    return Input(key, dtype, tuple(shape))()  # type: ignore[arg-type]


def parameter(slot: Parameter, mesh: Mesh, dtype: DType) -> Tensor:
    """A rank's share of a slot: a weight, or integers and scales under a `dequantize`."""
    shape = slot.local_shape(mesh)
    parts: tuple[tuple[str, int], ...] = ()
    if slot.shard is not None and slot.shard.dim == 0 and len(slot.parts) > 1:
        parts = tuple(slot.shard.parts.local(mesh).sizes.items())
    if slot.quant is None:
        return _once(Weight(slot.name, slot.dtype or dtype, shape, parts))
    values = _once(Weight(slot.name, slot.quant.dtype, shape, parts))
    scales = _once(
        Weight(scale_name(slot.name), slot.quant.scale, scale_shape(shape, slot.quant), parts)
    )
    tensor: Tensor = Dequantize(dtype)(values, scales)
    return tensor


def scale_name(name: str) -> str:
    """Where the scales of a quantized slot are stored: `...q_proj.weight` -> `...q_proj.scale`."""
    return f"{name.removesuffix('.weight')}.scale"


def scale_shape(shape: Shape, quant: QuantFormat) -> tuple[int, int]:
    """[rows, groups]. Raises `GraphError` where the columns are not whole groups."""
    rows, columns = shape
    assert isinstance(rows, int)
    assert isinstance(columns, int)
    if quant.group is None:
        return rows, 1
    if columns % quant.group:
        raise GraphError(
            f"{columns} columns are not whole groups of {quant.group}; choose a group that"
            f" divides {columns}, or quantize per row"
        )
    return rows, columns // quant.group


def cache(slot: Cache, mesh: Mesh, dtype: DType) -> Tensor:
    return _once(CacheBlocks(slot.name, dtype, (BLOCKS, BLOCK_SIZE, *slot.local_shape(mesh))))


def _once(op: Source) -> Tensor:
    """A slot that two layers share (tied embeddings) is one node."""
    for node in current_graph().nodes:
        if node.op == op:
            return node.outputs[0]
    tensor: Tensor = op()
    return tensor


def split_parts(tensor: Tensor) -> tuple[Tensor, ...] | None:
    """One tensor for each fused part of a weight, or None where it has no parts of its own."""
    op = tensor.node.op
    if isinstance(op, Weight) and op.parts:
        return tuple(
            _once(Weight(op.key, op.dtype, (rows, *op.shape[1:]), part=part))
            for part, rows in op.parts
        )
    if isinstance(op, Dequantize):
        integers, scales = (split_parts(t) for t in tensor.node.inputs)
        if integers is not None and scales is not None:
            return tuple(op(*pair) for pair in zip(integers, scales, strict=True))
    return None
