"""Recipes for a list: read without Hydra where they use only the plain forms of a defaults list.

Composing takes Hydra a tenth of a second a recipe, which a person would wait for. What is read
here is what Hydra composes, or nothing: `read` gives None for whatever it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(name: str, folders: Sequence[Path]) -> dict[str, Any] | None:
    """The values of a recipe before any override; None where Hydra has to be asked."""
    try:
        return _Reading(folders).recipe(name)
    except (_Unknown, OSError, ValueError, yaml.YAMLError, RecursionError):
        return None


class _Unknown(Exception):
    """A form that is not read here."""


class _Reading:
    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._overridden: dict[str, str] = {}  # group -> option, by recipes that inherit

    def recipe(self, name: str) -> dict[str, Any]:
        return self._file(name, "")

    def _file(self, path: str, group: str) -> dict[str, Any]:
        """A file's values with those that it inherits; `group` is its folder's name."""
        text = next(
            (f.read_text("utf-8") for d in self._folders if (f := d / f"{path}.yaml").is_file()),
            None,
        )
        if text is None or "${" in text or "@package" in text:
            raise _Unknown
        own = yaml.load(text, Loader)
        if not isinstance(own, dict) or "hydra" in own:
            raise _Unknown
        defaults = own.pop("defaults", ["_self_"])
        if not isinstance(defaults, list) or "_self_" not in defaults:
            raise _Unknown
        for entry in defaults:  # overrides count for what stands before them, too
            if isinstance(entry, dict) and len(entry) == 1:
                key, option = next(iter(entry.items()))
                if str(key).startswith("override "):
                    self._overridden.setdefault(
                        str(key).removeprefix("override ").strip("/"), option
                    )
        values: dict[str, Any] = {}
        for entry in defaults:
            _merge(values, own if entry == "_self_" else self._default(entry, group))
        return values

    def _default(self, entry: Any, group: str) -> dict[str, Any]:
        match entry:
            case str() if entry.replace("-", "").replace(".", "").replace("_", "").isalnum():
                return self._file(f"{group}/{entry}" if group else entry, group)
            case dict() if len(entry) == 1 and not group:
                key, option = next(iter(entry.items()))
                if str(key).startswith("override "):
                    return {}
                option = self._overridden.get(key, option)
                if str(key).isidentifier() and isinstance(option, str):
                    return {str(key): self._file(f"{key}/{option}", str(key))}
        raise _Unknown


def _merge(values: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
