"""A rank's process, as a launcher starts it: `python -m paddock.recipes.rank`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from paddock.engines.protocol import BuildError, Session
from paddock.graph import Mesh
from paddock.graph.ops import Communicator
from paddock.recipes import engine_kinds, pipeline, ranks
from paddock.recipes.schema import Recipe
from paddock.recipes.shelf import DamagedError, read
from paddock.runtime.distributed import worker
from paddock.runtime.distributed.mpi import World
from paddock.weights.hub import LocalCheckpoint


def open_rank(job: dict[str, Any], world: World, mesh: Mesh, communicator: Communicator) -> Session:
    """This rank's part of the engine that the front built. Raises what opening raises."""
    recipe = Recipe(**job["recipe"])
    pipeline.import_plugins(recipe)
    kind = engine_kinds.load(recipe.engine.name)
    own = kind.version()
    if own != job["engine"]:
        raise BuildError(
            f"it has {own}, and the first process {job['engine']}; install the same release on all"
            " hosts"
        )
    if kind.CAPABILITIES.gpu:
        _take_gpu(world)
    try:
        entry = read(Path(job["folder"]))
    except DamagedError as error:
        raise BuildError(
            f"{job['folder']} on {world.host}: {error}; all hosts need the folder of engines that"
            " the first one has (PADDOCK_HOME)"
        ) from None
    if entry.manifest.get("key") != job["key"]:
        raise BuildError(
            f"{entry.folder} on {world.host} is of another build than the front's; build again"
        )
    return pipeline.open_rank(
        entry.folder,
        Path(job["weights_folders"][mesh.rank]),
        LocalCheckpoint(Path(job["checkpoint"])),
        recipe,
        mesh.rank,
        communicator,
        neighbours=world.local_size,
    )


def _take_gpu(world: World) -> None:
    """Let this process see one GPU of its host alone, by its number among the ranks there.

    Raises `BuildError` where the environment lists fewer than there are ranks.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = [str(n) for n in range(world.local_size)] if listed is None else listed.split(",")
    if world.local_rank >= len(seen) or not seen[world.local_rank].strip():
        raise BuildError(
            f"{world.local_size} ranks on {world.host} need a GPU each, and CUDA_VISIBLE_DEVICES"
            f" is {listed!r}; start fewer ranks there, or let them see more"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[world.local_rank].strip()


if __name__ == "__main__":
    sys.exit(worker.serve(open_rank, ranks.version()))
