"""A slot for one weight: its full shape, how it divides over ranks, how it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paddock.graph.dtype import DType
from paddock.graph.errors import GraphError
from paddock.graph.graph import current_graph
from paddock.graph.mesh import Mesh, current_mesh
from paddock.graph.tensor import Tensor


@dataclass(frozen=True)
class Parts:
    """Named segments of one axis, e.g. the q, k and v rows of a fused projection.

    `unit` is the size that a rank never cuts through (the head size, in attention), `units` that of
    the parts named in it. Where ranks outnumber the units of a part and `repeat` is set,
    neighbouring ranks hold the same unit.
    """

    sizes: dict[str, int]
    unit: int = 1
    repeat: bool = False
    units: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    def slice(self, part: str, mesh: Mesh) -> slice:
        """The rows of `part` that belong on this rank."""
        width = self._width(part, mesh.tp)
        start = mesh.tp_rank * self.sizes[part] // mesh.tp // width * width
        return slice(start, start + width)

    def local(self, mesh: Mesh) -> Parts:
        """The same segments with the sizes that one rank holds."""
        sizes = {part: self._width(part, mesh.tp) for part in self.sizes}
        return Parts(sizes, self.unit, self.repeat, self.units)

    def _width(self, part: str, tp: int) -> int:
        size, unit = self.sizes[part], self.units.get(part, self.unit)
        units, rest = divmod(size, unit)
        if rest:
            raise GraphError(f"part {part!r}: {size} is not a multiple of its unit {unit}")
        if units % tp == 0:
            return size // tp
        if self.repeat and tp % units == 0:
            return unit
        fits = [n for n in range(1, min(units, 64) + 1) if units % n == 0]
        raise GraphError(
            f"part {part!r}: {units} units of {unit} do not divide over tp={tp};"
            f" tp may be one of {', '.join(map(str, fits))}"
            + (f", or a multiple of {units}" if self.repeat else "")
        )


@dataclass(frozen=True)
class Shard:
    """Divide axis `dim` over the tensor-parallel ranks, segment by segment."""

    dim: int
    parts: Parts


STORED = (DType.I8, DType.I4, DType.F8E4M3)  # what weights may be quantized to


@dataclass(frozen=True)
class QuantFormat:
    """Weights in 8 or 4 bits with a scale: value = stored x scale, symmetric about zero.

    `group` is how many neighbours along the input axis share a scale; None means a whole row, as
    it always is of e4m3, whose own exponents do what groups are for.
    """

    dtype: DType  # i8, i4 or e4m3
    group: int | None = None
    scale: DType = DType.F16

    def __post_init__(self) -> None:
        if self.dtype not in STORED:
            raise GraphError(f"weights are quantized to {', '.join(STORED)}, not to {self.dtype}")
        if self.group is not None and self.dtype is DType.F8E4M3:
            raise GraphError(f"{self.dtype} has one scale a row, not one for {self.group} weights")
        if self.group is not None and self.group < 1:
            raise GraphError(f"a group of {self.group} weights cannot share a scale; expected 1 up")
        if not self.scale.is_float:
            raise GraphError(f"scales are floats, not {self.scale}")

    def __str__(self) -> str:
        scale = "" if self.scale is DType.F16 else f", scales in {self.scale}"
        return f"{self.dtype}" + (f" groups of {self.group}" if self.group else " per row") + scale


@dataclass(eq=False)
class Parameter:
    """A slot. It holds no data and knows no rank: `shape` is the whole model's.

    `dtype` is None for the graph's own type. `quantizable` marks the weights of matrix products,
    [outputs, inputs] or [experts, outputs, inputs], which `quantize` may give a format.
    """

    shape: tuple[int, ...]
    shard: Shard | None = None
    dtype: DType | None = None
    quantizable: bool = False
    quant: QuantFormat | None = None
    name: str = field(default="", init=False)  # the path, given by the module tree when traced

    def local_shape(self, mesh: Mesh) -> tuple[int, ...]:
        """The shape that one rank holds."""
        if self.shard is None:
            return self.shape
        shape = list(self.shape)
        try:
            shape[self.shard.dim] = self.shard.parts.local(mesh).total
        except GraphError as error:
            raise GraphError(f"{self.name or 'a slot'}: {error}") from None
        return tuple(shape)

    def local_slice(self, part: str, mesh: Mesh) -> tuple[slice, ...]:
        """Where in the whole tensor of `part` this rank's share lies."""
        whole = [slice(0, n) for n in self.shape]
        if self.shard is not None:
            whole[self.shard.dim] = self.shard.parts.slice(part, mesh)
        return tuple(whole)

    @property
    def parts(self) -> dict[str, int]:
        """Part names and their whole sizes; a slot with no named parts has the one part ''."""
        return self.shard.parts.sizes if self.shard else {"": self.shape[0]}

    @property
    def summary(self) -> str:
        """Shape, with the sizes of fused parts, and format: `[q 64 + k 32 + v 32, 64] i8`."""
        sizes = list(map(str, self.shape))
        if self.shard is not None and len(self.parts) > 1:
            sizes[self.shard.dim] = " + ".join(f"{part} {n}" for part, n in self.parts.items())
        return f"[{', '.join(sizes)}]" + (f" {self.quant}" if self.quant else "")

    @property
    def tensor(self) -> Tensor:
        """This rank's share as a tensor of the current graph, dequantized where it is quantized."""
        from paddock.graph.ops import parameter

        return parameter(self, current_mesh(), current_graph().dtype)


@dataclass(eq=False)
class Cache:
    """A layer's state, declared as a Parameter is: `shape` is what one token adds.

    Paged: the runtime hands out blocks of tokens. [heads, head size] divides over the ranks by
    `shard` as weights do.
    """

    shape: tuple[int, ...]
    shard: Shard | None = None
    name: str = field(default="", init=False)

    def local_shape(self, mesh: Mesh) -> tuple[int, ...]:
        slot = Parameter(self.shape, self.shard)
        slot.name = self.name
        return slot.local_shape(mesh)

    @property
    def summary(self) -> str:
        return f"[{', '.join(map(str, self.shape))}]"

    @property
    def tensor(self) -> Tensor:
        from paddock.graph.ops import cache

        return cache(self, current_mesh(), current_graph().dtype)


@dataclass(eq=False)
class State:
    """What a layer keeps of a whole sequence, however long it is: `shape` is one sequence's.

    The runtime gives each running sequence a slot. Values are of the graph's type, or f32 at least
    where `exact`: what is added up over a whole sequence is not rounded at every token. The ops
    that read a slot begin from zeros where a sequence has no tokens before the step.
    """

    shape: tuple[int, ...]
    shard: Shard | None = None
    exact: bool = False
    name: str = field(default="", init=False)

    def local_shape(self, mesh: Mesh) -> tuple[int, ...]:
        """The shape that one rank holds of a sequence."""
        slot = Parameter(self.shape, self.shard)
        slot.name = self.name
        return slot.local_shape(mesh)

    @property
    def summary(self) -> str:
        """`[heads, key size, value size] a sequence`, with the numbers."""
        return f"[{', '.join(map(str, self.shape))}] a sequence"

    @property
    def tensor(self) -> Tensor:
        """This rank's slots as a tensor of the current graph."""
        from paddock.graph.ops import state

        dtype = current_graph().dtype
        if self.exact and dtype is not DType.F64:
            dtype = DType.F32
        return state(self, current_mesh(), dtype)
