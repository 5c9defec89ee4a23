"""Engines and bound weights that were built, under the keys of what they were built from.

$PADDOCK_HOME, or $XDG_CACHE_HOME/paddock, or ~/.cache/paddock
    engines/RECIPE-KEY/    manifest.json, rank-N/: the engine's own files
    weights/MODEL-KEY/     manifest.json, rank-N.safetensors: bound weights, for all engines
    file-hashes.json       content hashes of checkpoint files, by place, size and times
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.engines.protocol import BuildError
from paddock.graph.errors import nearest
from paddock.recipes.build_key import Parts, differences
from paddock.recipes.content import ContentHashes
from paddock.recipes.errors import RecipeError
from paddock.recipes.machine import GIB
from paddock.recipes.shelf import MANIFEST, DamagedError, Entry, Shelf, check_files, read

DAY_S = 86_400


@dataclass(frozen=True)
class CachedEngine:
    """An engine folder, as `paddock cache list` shows it."""

    folder: Path
    recipe: str
    engine: str
    dtype: str
    quant: str
    checkpoint: str
    engine_bytes: int
    weights_bytes: int
    """Of its bound weights, which other engines may share."""
    made_at: float
    """Seconds since the epoch, as `last_used`."""
    last_used: float
    problem: str = ""
    """Why it cannot be used; what is not known is then empty."""


@dataclass(frozen=True)
class Pruned:
    """What was deleted: engines, then bound weights that no engine uses any more."""

    removed: tuple[Path, ...]
    freed_bytes: int
    busy: tuple[Path, ...]
    """Left alone because a process is building them."""


class BuildCache:
    """All that is kept under one root folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()
        self.engines = Shelf(self.root / "engines", "this engine")
        self.weights = Shelf(self.root / "weights", "these bound weights")
        self.hashes = ContentHashes(self.root / "file-hashes.json")

    def why_missing(self, recipe: str, parts: Parts) -> list[str]:
        """How `parts` differ from the engine of this recipe that comes nearest."""
        of_recipe = [
            (differences(old, parts), entry)
            for _, entry in self.engines.entries()
            if isinstance(entry, Entry)
            and entry.manifest.get("recipe") == recipe
            and isinstance(old := entry.manifest.get("key_parts"), dict)
        ]
        if not of_recipe:
            return [f"nothing was built of {recipe} yet"]
        closest = min(of_recipe, key=lambda pair: (len(pair[0]), -pair[1].last_used))
        return closest[0] or ["it was built under another schema"]

    def named(self, engine: str) -> Entry:
        """An engine by its folder, its folder's name, or its key. Raises `RecipeError`."""
        folder = Path(engine).expanduser()
        try:
            if (folder / MANIFEST).is_file():
                entry = read(folder.absolute())
                check_files(entry)
                return entry
            found = self.engines.find(engine.rpartition("-")[2])
        except DamagedError as error:
            raise RecipeError(f"{engine}: the engine is damaged: {error}; build it again") from None
        if found is None:
            names = [path.name for path, _ in self.engines.entries()]
            raise RecipeError(
                f"no engine {engine!r} is in {self.engines.root}{nearest(engine, names)};"
                " `paddock cache list` shows those that are"
            )
        return found

    def require_space(self, nbytes: int, what: str) -> None:
        """Raise `BuildError` where the disk has no room for `nbytes` and a little more."""
        free = free_space(self.root)
        if free < nbytes * 1.02 + (16 << 20):
            raise BuildError(
                f"{what} need {nbytes / GIB:.2f} GiB in {self.root}, and"
                f" {free / GIB:.2f} GiB are free there; free some space"
                " (`paddock cache prune`), or set PADDOCK_HOME to a folder elsewhere"
            )

    def all_engines(self) -> list[CachedEngine]:
        """Every engine, the last used one first, damaged ones included."""
        listed = [self._listed(folder, entry) for folder, entry in self.engines.entries()]
        return sorted(listed, key=lambda engine: -engine.last_used)

    def prune(
        self,
        *,
        keep_gib: float | None = None,
        older_than_days: float | None = None,
        everything: bool = False,
    ) -> Pruned:
        """Delete damaged engines, and those that the bounds name; then weights nobody uses.

        `keep_gib`: the least recently used go until the rest takes no more than this, their
        weights included. `older_than_days`: those not used for so long. Engines that are open in
        another process keep working: their files go when they are closed.
        """
        removed, busy, freed = [], [], 0
        gone: set[str] = set()
        for engine in self._to_go(keep_gib, older_than_days, everything):
            if self.engines.remove(engine.folder):
                removed.append(engine.folder)
                gone.add(engine.folder.name)
                freed += engine.engine_bytes
            else:
                busy.append(engine.folder)
        used = self._weights_in_use()
        if self.engines.is_busy():
            return Pruned(tuple(removed), freed, tuple(busy))  # a build may be about to use them
        for folder, entry in list(self.weights.entries()):
            if folder.name.rpartition("-")[2] in used and isinstance(entry, Entry):
                continue
            size = _nbytes(folder)
            if self.weights.remove(folder):
                removed.append(folder)
                freed += size
            else:
                busy.append(folder)
        return Pruned(tuple(removed), freed, tuple(busy))

    def _to_go(
        self, keep_gib: float | None, older_than_days: float | None, everything: bool
    ) -> list[CachedEngine]:
        for name, value in (("keep_gib", keep_gib), ("older_than_days", older_than_days)):
            if value is not None and not value >= 0:
                raise RecipeError(f"{name} must be 0 or more, it is {value}")
        engines = self.all_engines()
        now = time.time()
        going = [
            e
            for e in engines
            if everything
            or e.problem
            or (older_than_days is not None and now - e.last_used > older_than_days * DAY_S)
        ]
        if keep_gib is None:
            return going
        kept_bytes, counted = 0.0, set[str]()
        for engine in engines:  # the last used first
            if engine in going:
                continue
            key = self._weights_key(engine.folder)
            cost = engine.engine_bytes + (0 if key in counted else engine.weights_bytes)
            if kept_bytes + cost > keep_gib * GIB:
                going.append(engine)
                continue
            kept_bytes += cost
            counted.add(key)
        return going

    def _weights_key(self, folder: Path) -> str:
        for found, entry in self.engines.entries():
            if found == folder and isinstance(entry, Entry):
                return " ".join(weights_keys(entry.manifest))
        return ""

    def _weights_in_use(self) -> set[str]:
        return {
            key
            for _, entry in self.engines.entries()
            if isinstance(entry, Entry)
            for key in weights_keys(entry.manifest)
        }

    def _listed(self, folder: Path, entry: Entry | DamagedError) -> CachedEngine:
        if isinstance(entry, DamagedError):
            name = folder.name.rpartition("-")[0]
            made = folder.stat().st_mtime
            return CachedEngine(
                folder, name, "", "", "", "", _nbytes(folder), 0, made, made, str(entry)
            )
        manifest, problem, weights_bytes = entry.manifest, "", 0
        try:
            for key in weights_keys(manifest):
                bound = self.weights.find(key)
                if bound is None:
                    problem = "its bound weights were deleted"
                else:
                    weights_bytes += bound.nbytes
        except DamagedError as error:
            problem = f"its bound weights are damaged: {error}"
        parts: Mapping[str, Any] = manifest.get("key_parts") or {}
        return CachedEngine(
            folder=folder,
            recipe=str(manifest.get("recipe")),
            engine=str(parts.get("engine", "")),
            dtype=str(parts.get("dtype", "")),
            quant=str(parts.get("quant", "")),
            checkpoint=str((manifest.get("checkpoint") or {}).get("name", "")),
            engine_bytes=entry.nbytes,
            weights_bytes=weights_bytes,
            made_at=float(manifest.get("made_at", 0.0)),
            last_used=entry.last_used,
            problem=problem,
        )


def weights_keys(manifest: Mapping[str, Any]) -> list[str]:
    """The keys of an engine's bound weights, one a rank."""
    found = manifest.get("weights")
    return list(map(str, found)) if isinstance(found, list) else [str(found)]


def home() -> Path:
    """Where builds are kept."""
    if given := os.environ.get("PADDOCK_HOME"):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").expanduser().absolute() / "paddock"


def free_space(folder: Path) -> int:
    """Bytes that may still be written below `folder`, which need not exist yet."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _nbytes(folder: Path) -> int:
    return sum(f.lstat().st_size for f in folder.rglob("*") if not f.is_dir())
