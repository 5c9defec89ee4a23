"""Symbolic tensors and the nodes that make them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paddock.graph.dtype import DType
from paddock.graph.errors import GraphError

if TYPE_CHECKING:
    from paddock.graph.op import Op


@dataclass(frozen=True)
class Dim:
    """A dimension whose size is known only when a step runs, e.g. the tokens of a batch."""

    name: str

    def __str__(self) -> str:
        return self.name


Shape = tuple[int | Dim, ...]

TOKENS = Dim("tokens")  # all new tokens of a step, packed
SEQUENCES = Dim("sequences")
STARTS = Dim("sequences + 1")  # offsets: one more than there are sequences
TABLE = Dim("table")  # all block numbers of a step's sequences, flat
SOURCE_TOKENS = Dim("source tokens")  # what a step's encoder reads, packed; often none
SOURCE_TABLE = Dim("source table")  # all block numbers of the sources of a step's sequences
IMAGE_PATCHES = Dim("image patches")  # of the images of a step, packed; often none
IMAGE_STARTS = Dim("images + 1")
AREA_STARTS = Dim("image areas + 1")  # of what some layers of a tower see of an image
ROWS = Dim("rows")  # tokens whose logits somebody reads
BLOCKS = Dim("blocks")  # cache blocks that the runtime has allocated
SLOTS = Dim("slots")  # places for the states of sequences that the runtime has allocated
BLOCK_SIZE = Dim("block_size")  # tokens in a cache block; the engine's choice


@dataclass(frozen=True)
class TensorType:
    """Element type and shape. Shapes are row-major, as in NumPy."""

    dtype: DType
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    def size(self, axis: int) -> int:
        """The fixed size of an axis."""
        if not -self.rank <= axis < self.rank:
            raise GraphError(f"{self} has no axis {axis}")
        dim = self.shape[axis]
        if isinstance(dim, Dim):
            raise GraphError(f"axis {axis} of {self} has no fixed size")
        return dim

    def with_shape(self, *shape: int | Dim) -> TensorType:
        return TensorType(self.dtype, shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(eq=False, slots=True)
class Tensor:
    """One output of a node. Arithmetic on it inserts nodes into the current graph."""

    node: Node
    index: int
    type: TensorType

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> Shape:
        return self.type.shape

    def __add__(self, other: Tensor) -> Tensor:
        from paddock.graph.ops import add

        return add(self, other)

    def __mul__(self, other: Tensor | float) -> Tensor:
        from paddock.graph.ops import mul, scale

        return mul(self, other) if isinstance(other, Tensor) else scale(self, other)

    def __rmul__(self, factor: float) -> Tensor:
        return self * factor


@dataclass(eq=False, slots=True)
class Node:
    """One op applied to tensors: what it is, where in the model it stands, which line wrote it."""

    op: Op
    inputs: tuple[Tensor, ...]
    path: str  # dotted module path, e.g. model.layers.0.mlp.down_proj
    source: str  # file:line
    outputs: tuple[Tensor, ...] = field(default=())

    @property
    def where(self) -> str:
        """`path (source)`, for messages."""
        return f"{self.path or 'the model'} ({self.source})"


def fixed(shape: Shape) -> tuple[int, ...]:
    """A shape without symbolic dimensions, or a `GraphError`."""
    sizes = tuple(d for d in shape if isinstance(d, int))
    if len(sizes) != len(shape):
        raise GraphError(f"the shape ({', '.join(map(str, shape))}) has no fixed size")
    return sizes
