"""Where each value of a composed recipe was written: file and line."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.default_element import ResultDefault
from yaml.nodes import MappingNode, Node, ScalarNode

from paddock.recipes.config_path import OURS


def origins(
    defaults: Sequence[ResultDefault], folders: Sequence[Path], chosen: Mapping[str, str]
) -> dict[str, str]:
    """Dotted key -> "file:line" of the last file that sets it.

    `defaults` is Hydra's list in the order in which files are merged; `chosen` maps a group to the
    override that chose its file.
    """
    places: dict[str, str] = {}
    for default in defaults:
        path = default.config_path
        file = None if path is None or path.startswith("hydra/") else _file(path, folders)
        if file is None:
            continue
        why = (
            f", chosen by {chosen[group]}"
            if (group := str(path).rpartition("/")[0]) in chosen
            else ""
        )
        prefix = f"{default.package}." if default.package else ""
        for key, line in _lines(file, file.stat().st_mtime_ns):
            full = f"{prefix}{key}"
            # A value replaces a mapping of earlier files, a mapping is merged into theirs.
            for old in [k for k in places if k.startswith(f"{full}.")]:
                del places[old]
            places[full] = f"{shown(file)}:{line}{why}"
    return places


def shown(file: Path) -> str:
    """A recipe's file as a person names it: ours from the project's root, the user's in full."""
    return f"recipes/{file.relative_to(OURS)}" if file.is_relative_to(OURS) else str(file)


def _file(config_path: str, folders: Sequence[Path]) -> Path | None:
    files = (folder / f"{config_path.removesuffix('.yaml')}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


@lru_cache(maxsize=256)
def _lines(file: Path, modified_ns: int) -> list[tuple[str, int]]:
    """Each value's dotted key and line, the defaults list left out."""
    root = yaml.compose(file.read_text("utf-8"), Loader=yaml.SafeLoader)
    return [(k, n) for k, n in _walk(root, "") if k.partition(".")[0] != "defaults"]


def _walk(node: Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, MappingNode):
        return
    pairs: Any = node.value
    for key, value in pairs:
        if not isinstance(key, ScalarNode):
            continue
        path = f"{prefix}{key.value}"
        if isinstance(value, MappingNode) and value.value:
            yield from _walk(value, f"{path}.")
        else:
            yield path, key.start_mark.line + 1
