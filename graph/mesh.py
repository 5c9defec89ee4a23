"""Which rank a graph is being built for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from paddock.graph.errors import GraphError


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A rank's place among `tp` tensor-parallel times `pp` pipeline ranks."""

    tp: int = 1
    pp: int = 1
    tp_rank: int = 0
    pp_rank: int = 0

    def __post_init__(self) -> None:
        for size, rank in (("tp", self.tp_rank), ("pp", self.pp_rank)):
            ranks = getattr(self, size)
            if ranks < 1:
                raise GraphError(f"mesh: {size} is {ranks}, expected at least 1")
            if not 0 <= rank < ranks:
                raise GraphError(f"mesh: {size}_rank is {rank}, expected 0 to {ranks - 1}")

    @property
    def is_first(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last(self) -> bool:
        return self.pp_rank == self.pp - 1

    def stage(self, count: int) -> range:
        """The slice of `count` layers that this rank holds; sizes differ by one at most."""
        return range(count * self.pp_rank // self.pp, count * (self.pp_rank + 1) // self.pp)

    def ranks(self) -> Iterator["Mesh"]:
        """Every rank of a mesh of this shape, tensor-parallel neighbours together."""
        for pp_rank in range(self.pp):
            for tp_rank in range(self.tp):
                yield Mesh(tp=self.tp, pp=self.pp, tp_rank=tp_rank, pp_rank=pp_rank)


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
