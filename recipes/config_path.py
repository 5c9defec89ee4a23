"""Where recipes and the options of their groups lie: folders of YAML files, searched in order."""

import re
from collections.abc import Sequence
from pathlib import Path

from paddock.graph.errors import nearest
from paddock.recipes.errors import RecipeError

OURS = Path(__file__).resolve().parent


def search_path(config_dirs: Sequence[str | Path]) -> list[Path]:
    """The user's folders, then ours: what is found first counts. Raises `RecipeError`."""
    folders = []
    for given in config_dirs:
        folder = Path(given).expanduser().absolute()
        if not folder.is_dir():
            what = "not a folder" if folder.exists() else "not there"
            raise RecipeError(f"--config-dir {given}: it is {what}; name a folder with recipes")
        folders.append(folder)
    return [*folders, OURS]


def recipes(folders: Sequence[Path]) -> dict[str, Path]:
    """Name -> file: the files at the top of each folder."""
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def find_recipe(name: str, folders: Sequence[Path]) -> Path:
    """Raises `RecipeError` with the nearest names."""
    known = recipes(folders)
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        raise RecipeError(
            f"{name!r} is a file, not a recipe's name; say `--config-dir {path.parent} {path.stem}`"
        )
    raise RecipeError(
        f"no recipe {name!r}{nearest(name.lower(), known)}; `paddock list` shows them all"
    )


def as_checkpoint(name: str, folders: Sequence[Path]) -> bool:
    """Whether what stands where a recipe's name would is a checkpoint: a folder or Org/Name."""
    if name in recipes(folders) or name.endswith((".yaml", ".yml")):
        return False
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name)) or (
        "/" in name and Path(name).expanduser().is_dir()
    )


def options(group: str, folders: Sequence[Path]) -> list[str]:
    """The choices of a group: the files in its folders. None where `group` is not a group."""
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*", group):
        return []
    return sorted({f.stem for folder in folders for f in (folder / group).glob("*.yaml")})
