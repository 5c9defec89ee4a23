"""From a recipe's name and overrides to a validated `Recipe`, with the source of every value.

Hydra keeps what it works on in a process-wide singleton: one composition runs at a time and leaves
the singleton as it found it, so that callers may be threads, or Hydra programs themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from paddock.recipes import listing
from paddock.recipes import overrides as command_line
from paddock.recipes.config_path import as_checkpoint, find_recipe, options, recipes, search_path
from paddock.recipes.errors import RecipeError
from paddock.recipes.interpolation import refuse_code
from paddock.recipes.needs import needs
from paddock.recipes.origins import origins, shown
from paddock.recipes.problems import first_problem, one_line
from paddock.recipes.schema import Recipe

UNSET = "???"  # OmegaConf's word for a value that the user has to give
COMMAND_LINE = "command line"
DEFAULT = "default"


class Composed:
    """A recipe, and where each of its values came from."""

    def __init__(self, recipe: Recipe, request: _Request) -> None:
        self.recipe = recipe
        self._request = request

    @cached_property
    def sources(self) -> Mapping[str, str]:
        """Dotted key -> where it was set; looked up when first asked for.

        "recipes/demo.yaml:7" (the whole path where the file is the user's own; with ", chosen by
        quant=int8" where an override chose the file), "command line", or "default" for the
        schema's.
        """
        found = self._request.sources()
        every = {key: found.get(key, DEFAULT) for key, _ in _leaves(self.recipe.model_dump())}
        return every | {"name": shown(self._request.file)}


@dataclass(frozen=True)
class RecipeSummary:
    """A line of `paddock list`: a recipe before any override."""

    name: str
    file: Path
    summary: str = ""
    family: str = ""
    size: str = ""
    checkpoint: str = ""
    engine: str = ""
    quant: str = ""
    needs: str = ""
    """Of the machine, e.g. "0.6 GB of memory, 0.3 GB to download"."""
    problem: str = ""
    """Why it does not compose (a user's own file); the fields between are then empty."""


def compose(
    name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()
) -> Composed:
    """The recipe `name`, changed by `overrides` in Hydra's grammar: `quant=int8 mesh.tp=2`.

    `config_dirs` are searched before Paddock's own recipes, in their order: a recipe there may
    inherit from ours (`defaults: [qwen3-0.6b, _self_]`), and takes the place of one of its name.
    A folder's path or a hub repository `Org/Name` in the place of a name is the recipe `auto` with
    that checkpoint. Raises `RecipeError`.
    """
    folders = search_path(config_dirs)
    name, overrides = _recipe_of(name, overrides, folders)
    request = _Request(name, overrides, folders)
    values = request.values()
    unset = sorted(key for key, value in _leaves(values) if value == UNSET)
    if unset:
        say = "FOLDER or checkpoint=Org/Name" if unset[0] == "checkpoint" else "..."
        raise RecipeError(f"recipe {name!r} leaves {unset[0]} to you; say {unset[0]}={say}")
    return Composed(_validated(request, values), request)


def available(config_dirs: Sequence[str | Path] = ()) -> list[RecipeSummary]:
    """Every recipe that `compose` finds, by name, `demo` and `auto` first.

    One that does not compose is listed with its `problem`. Raises `RecipeError` where a folder is
    none.
    """
    folders = search_path(config_dirs)
    first = ("demo", "auto")
    order = sorted(recipes(folders).items(), key=lambda r: (r[0] not in first, r[0]))
    return [_summary(name, file, folders) for name, file in order]


def expand_sweep(
    name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()
) -> list[list[str]]:
    """One list of overrides for each run of `--multirun`, the last sweep varying fastest.

    Values: `a,b`, `choice(a,b)`, `range(1,9,4)`, `glob(*)` over a group's options. Every run is
    composed, so that the first does not start before the last is known to be in order.
    Raises `RecipeError`.
    """
    folders = search_path(config_dirs)
    find_recipe(_recipe_of(name, overrides, folders)[0], folders)
    runs = command_line.expand(overrides, folders)
    for run in runs:
        compose(name, run, config_dirs)
    return runs


def _recipe_of(
    name: str, overrides: Sequence[str], folders: Sequence[Path]
) -> tuple[str, Sequence[str]]:
    if not as_checkpoint(name, folders):
        return name, overrides
    return "auto", [f'checkpoint="{_quoted(name)}"', *overrides]


class _Request:
    """A name with overrides, and the folders in which it is looked up."""

    def __init__(self, name: str, lines: Sequence[str], folders: Sequence[Path]) -> None:
        self.name, self.folders = name, folders
        self.file = find_recipe(name, folders)
        self.overrides = command_line.parse(lines, folders)
        for override in self.overrides:
            command_line.refuse_sweep(override)
        self.groups = {o.key_or_group for o in self.overrides if options(o.key_or_group, folders)}

    def values(self) -> dict[str, Any]:
        """What Hydra composes, resolved; the schema has not seen it."""
        with self._hydra() as (path, loader):
            lines = self._lines(path, loader) if self.groups else self._lines(path, None)
            config = hydra_compose(PRIMARY, lines)
            refuse_code(config)
            values = OmegaConf.to_container(config, resolve=True)
        assert isinstance(values, dict)
        return {str(k): v for k, v in values.items()}

    def sources(self) -> dict[str, str]:
        """Dotted key -> place, for the keys that a file or the command line sets."""
        chosen = {o.key_or_group: str(o.input_line) for o in self._of_groups()}
        with self._hydra() as (path, loader):
            lines = self._lines(path, loader)
            of_groups = [
                x for x, o in zip(lines[1:], self.overrides, strict=True) if o in self._of_groups()
            ]
            merged = loader.compute_defaults_list(PRIMARY, [path, *of_groups], RunMode.RUN)
            found = origins(merged.defaults, self.folders, chosen)
        for override in self.overrides:
            if override.key_or_group not in self.groups:
                _mark(found, override)
        return found

    def _of_groups(self) -> list[Override]:
        return [o for o in self.overrides if o.key_or_group in self.groups]

    def _lines(self, path: str, loader: ConfigLoader | None) -> list[str]:
        choices: list[str] = []
        if loader is not None:
            inherited = loader.compute_defaults_list(PRIMARY, [path], RunMode.RUN)
            choices = list(inherited.overrides.known_choices)
        return [path, *(command_line.in_hydra(o, choices, self.groups) for o in self.overrides)]

    @contextmanager
    def _hydra(self) -> Iterator[tuple[str, ConfigLoader]]:
        """Hydra over the folders, errors in our own words."""
        try:
            with _hydra(self.name, self.folders) as (path, loader):
                yield path, loader
        except RecursionError:
            raise RecipeError(
                f"recipe {self.name!r} ({self.file}) inherits from itself; one that changes another"
                " needs a name of its own"
            ) from None
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
            raise RecipeError(f"recipe {self.name!r}: {one_line(error)}") from None
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe {self.name!r}: not UTF-8 text: {error}") from None


def _validated(request: _Request, values: Mapping[str, Any]) -> Recipe:
    if "name" in values:
        raise RecipeError(
            f"recipe {request.name!r}: a recipe is named by its file; leave out the key 'name'"
            f" ({request.sources().get('name')})"
        )
    try:
        return Recipe.model_validate({"name": request.name, **values})
    except ValidationError as error:
        problem = first_problem(error, request.sources())
        raise RecipeError(f"recipe {request.name!r}: {problem}") from None


def _summary(name: str, file: Path, folders: Sequence[Path]) -> RecipeSummary:
    try:
        request = _Request(name, (), folders)
        values = listing.read(name, folders) or request.values()
        if values.get("checkpoint") == UNSET:
            values["checkpoint"] = "yours"
        recipe = _validated(request, values)
    except RecipeError as error:
        return RecipeSummary(name, file, problem=str(error))
    return RecipeSummary(
        name=name,
        file=file,
        summary=recipe.summary,
        family=recipe.family,
        size=recipe.size,
        checkpoint=recipe.checkpoint,
        engine=recipe.engine.name,
        quant=recipe.quant.weights,
        needs=needs(recipe),
    )


def _mark(sources: dict[str, str], override: Override) -> None:
    """Note what one override of a key sets or deletes."""
    key = override.key_or_group
    given = None if override.is_delete() else override.value()
    if not isinstance(given, dict):
        for old in [k for k in sources if k == key or k.startswith(f"{key}.")]:
            del sources[old]
    if override.is_delete():
        return
    for tail, _ in _leaves(given) if isinstance(given, dict) else [("", given)]:
        sources[f"{key}.{tail}" if tail else key] = COMMAND_LINE


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_LOCK = threading.RLock()
PRIMARY = "paddock_recipe"  # a config that Hydra finds before it knows the folders


@contextmanager
def _hydra(name: str, folders: Sequence[Path]) -> Iterator[tuple[str, ConfigLoader]]:
    """Hydra over the folders, the first before the others: the override that names them, a loader.

    Hydra looks for its primary config before it takes up `hydra.searchpath`, so the primary one is
    made here and inherits from the recipe, wherever that lies.
    """
    with _LOCK:
        singleton, version = GlobalHydra.instance(), VersionBase.instance()
        store = ConfigStore.instance()
        kept = singleton.hydra, version.version_base
        singleton.hydra = None
        try:
            store.store(PRIMARY, {"defaults": [name, "_self_"]})
            initialize(config_path=None, job_name="paddock", version_base=None)
            places = ",".join(f'"file://{_quoted(folder)}"' for folder in folders)
            yield f"hydra.searchpath=[{places}]", singleton.config_loader()
        finally:
            store.repo.pop(f"{PRIMARY}.yaml", None)
            singleton.hydra, version.version_base = kept


def _quoted(text: Path | str) -> str:
    return str(text).replace("\\", "\\\\").replace('"', '\\"')
