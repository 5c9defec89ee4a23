"""A rank's process, as a launcher starts it: `python -m paddock.recipes.rank`."""

from __future__ import annotations

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
    own = engine_kinds.load(recipe.engine.name).version()
    if own != job["engine"]:
        raise BuildError(
            f"it has {own}, and the first process {job['engine']}; install the same release on all"
            " hosts"
        )
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


if __name__ == "__main__":
    sys.exit(worker.serve(open_rank, ranks.version()))
