"""The front's side of several ranks: start them, and have them open a built engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from paddock.engines.protocol import BuildError
from paddock.graph import Mesh
from paddock.recipes import engine_kinds
from paddock.recipes.content import source_hash
from paddock.recipes.schema import Recipe
from paddock.recipes.tracing import mesh_of
from paddock.recipes.version import installed_version
from paddock.runtime.distributed import hosts as hosts_of_ranks
from paddock.runtime.distributed.front import Patience, RankGroup, RemoteSession
from paddock.runtime.distributed.launch import Launched, launched, require_mpi_of_srun

if TYPE_CHECKING:
    from paddock.recipes.pipeline import BuiltEngine

_ROOMS = ("graph", "layers", "models", "weights", "engines", "runtime", "recipes")


def version() -> str:
    """What must be the same on all ranks: the release, its code, and Python's."""
    code = source_hash(*(f"paddock.{room}" for room in _ROOMS))[:8]
    python = ".".join(map(str, sys.version_info[:2]))
    return f"paddock {installed_version()} (code {code}, Python {python})"


def start(recipe: Recipe) -> list[RankGroup]:
    """The ranks of each replica, which come up while the engine is built; none where one is enough.

    Raises `BuildError` where they cannot be started.
    """
    mesh, by, hosts = mesh_of(recipe), launched(), recipe.mesh.hosts
    if hosts is not None:
        _check_hosts(hosts, mesh, recipe.mesh.dp, by)
    if mesh.size == 1 and by is None:
        return []
    require_mpi_of_srun()
    if by is not None and recipe.mesh.dp > 1:
        raise BuildError(
            f"mesh.dp={recipe.mesh.dp}: under a launcher there is one replica; start it without the"
            " launcher, or one server for each replica with mesh.dp=1"
        )
    patience = Patience(
        start_s=recipe.mesh.start_timeout_s,
        silence_s=recipe.mesh.silence_timeout_s,
        step_s=recipe.mesh.step_timeout_s,
    )
    groups: list[RankGroup] = []
    try:
        for _ in range(recipe.mesh.dp):
            groups.append(RankGroup(mesh, version(), patience=patience, started_by=by, hosts=hosts))
    except BaseException:
        for group in groups:
            group.close()
        raise
    return groups


def _check_hosts(hosts: tuple[str, ...], mesh: Mesh, replicas: int, by: Launched | None) -> None:
    listed = f"mesh.hosts={','.join(hosts)}"
    if by is not None:
        raise BuildError(
            f"{listed}: a launcher has started the ranks where it was told to; leave it out, or"
            " start Paddock without the launcher"
        )
    if replicas > 1:
        raise BuildError(
            f"{listed}: replicas run on one host; start a server on each, or mesh.dp=1"
        )
    if mesh.size == 1:
        raise BuildError(f"{listed}: {mesh} is one rank, in this process; use mesh.tp or mesh.pp")
    hosts_of_ranks.divide(mesh.size, hosts)
    hosts_of_ranks.require(hosts)


def open_engine(group: RankGroup, built: BuiltEngine, recipe: Recipe) -> RemoteSession:
    """The ranks as one session of a built engine. Raises `BuildError`; the ranks are ended then."""
    try:
        job = {
            "recipe": recipe.model_dump(mode="json"),
            "folder": str(built.folder),
            "weights_folders": list(map(str, built.weights_folders)),
            "checkpoint": str(built.checkpoint.folder),
            "key": built.manifest["key"],
            "engine": engine_kinds.load(recipe.engine.name).version(),
        }
        [session] = group.open(job)
    except BaseException:
        group.close()
        raise
    return session
