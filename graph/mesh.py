"""Which rank a graph is being built for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from paddock.graph.errors import GraphError


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A rank's place among `tp` tensor-parallel times `pp` pipeline ranks.

    `stages` says how many layers each pipeline stage holds; None: as evenly as possible.
    """

    tp: int = 1
    pp: int = 1
    tp_rank: int = 0
    pp_rank: int = 0
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for size, rank in (("tp", self.tp_rank), ("pp", self.pp_rank)):
            ranks = getattr(self, size)
            if ranks < 1:
                raise GraphError(f"mesh: {size} is {ranks}, expected at least 1")
            if not 0 <= rank < ranks:
                raise GraphError(f"mesh: {size}_rank is {rank}, expected 0 to {ranks - 1}")
        if self.stages is not None and (len(self.stages) != self.pp or min(self.stages) < 1):
            raise GraphError(
                f"mesh: stages {list(self.stages)} are not {self.pp} stages of a layer or more,"
                f" as pp={self.pp} says"
            )

    @property
    def is_first(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last(self) -> bool:
        return self.pp_rank == self.pp - 1

    @property
    def size(self) -> int:
        return self.tp * self.pp

    @property
    def rank(self) -> int:
        """The number of this rank: tensor-parallel neighbours follow one another."""
        return self.pp_rank * self.tp + self.tp_rank

    def stage(self, count: int) -> range:
        """The slice of `count` layers that this rank holds; sizes differ by one at most."""
        if self.stages is None:
            return range(count * self.pp_rank // self.pp, count * (self.pp_rank + 1) // self.pp)
        if sum(self.stages) != count:
            raise GraphError(
                f"mesh: stages {list(self.stages)} hold {sum(self.stages)} layers, the model has"
                f" {count}"
            )
        first = sum(self.stages[: self.pp_rank])
        return range(first, first + self.stages[self.pp_rank])

    def ranks(self) -> Iterator["Mesh"]:
        """Every rank of a mesh of this shape, tensor-parallel neighbours together."""
        for pp_rank in range(self.pp):
            for tp_rank in range(self.tp):
                yield replace(self, tp_rank=tp_rank, pp_rank=pp_rank)

    def __str__(self) -> str:
        """The shape, without the rank: `tp=2 pp=3 stages=[2, 3, 3]`."""
        stages = f" stages={list(self.stages)}" if self.stages else ""
        return f"tp={self.tp} pp={self.pp}{stages}"


_MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


def current_mesh() -> Mesh:
    return _MESH.get() or Mesh()


@contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    token = _MESH.set(mesh)
    try:
        yield mesh
    finally:
        _MESH.reset(token)
