"""The meshes that ranks started once divide a model by, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from paddock.graph import Mesh
from paddock.runtime.distributed.mpi import MpiCommunicator, World

MESHES = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 3)]


def places(world: World) -> Iterator[tuple[Mesh, MpiCommunicator]]:
    """This rank's place in each of the meshes that it is part of, and who else is there."""
    for tp, pp in MESHES:
        shape = Mesh(tp=tp, pp=pp)
        taking_part = world.rank < shape.size
        comm = world.comm.Split(0 if taking_part else 1, world.rank)
        if not taking_part:
            continue
        mesh = list(shape.ranks())[world.rank]
        communicator = MpiCommunicator(comm, mesh)
        yield mesh, communicator
        communicator.flush()
