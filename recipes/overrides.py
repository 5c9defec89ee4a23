"""What a command line changes in a recipe: Hydra's override grammar, checked key by key."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException

from paddock.graph.errors import nearest
from paddock.recipes.config_path import options
from paddock.recipes.errors import RecipeError
from paddock.recipes.problems import keys, one_line


def parse(lines: Sequence[str], folders: Sequence[Path]) -> list[Override]:
    """Each line as Hydra reads it, groups checked against the options there are.

    Raises `RecipeError`, as for a sweep that cannot be listed.
    """
    return [_parse(line, folders) for line in lines]


def expand(lines: Sequence[str], folders: Sequence[Path]) -> list[list[str]]:
    """The runs of a sweep: every combination of values, the last one varying fastest."""
    each = [list(_values(override)) for override in parse(lines, folders)]
    return [list(run) for run in itertools.product(*each)]


def refuse_sweep(override: Override) -> None:
    """Raise `RecipeError` for several values where one run is asked for."""
    if override.is_sweep_override():
        key, _, value = str(override.input_line).partition("=")
        raise RecipeError(
            f"override {override.input_line!r} has several values; `paddock bench --multirun` runs"
            f" each. For a list write '{key}=[{value}]', for one text '{key}=\"{value}\"'"
        )


def in_hydra(override: Override, choices: Sequence[str], groups: set[str]) -> str:
    """The override as given to Hydra: it may set a key or group that the recipe leaves out.

    The schema knows every key and refuses the unknown ones, with the nearest name; Hydra would
    refuse what a recipe does not spell out. `choices` are the groups in the defaults list.
    """
    line = str(override.input_line)
    if override.type is not OverrideType.CHANGE:
        return line
    if override.key_or_group in groups:
        return line if override.key_or_group in choices else f"+{line}"
    return f"++{line}"


def _parse(line: str, folders: Sequence[Path]) -> Override:
    try:
        # The grammar's glob() asks the loader for a group's options, and nothing else.
        loader = cast(ConfigLoader, _GroupOptions(folders))
        (override,) = OverridesParser.create(loader).parse_overrides([line])
    except OverrideParseException as error:
        raise RecipeError(_malformed(line, error)) from None
    except HydraException as error:
        raise RecipeError(f"override {line!r}: {one_line(error)}") from None
    key = override.key_or_group
    first = re.split(r"[./]", key)[0]
    if first == "hydra":
        raise RecipeError(
            f"override {line!r}: Hydra's own settings are no part of a recipe; recipes of your own"
            " are found with --config-dir"
        )
    choices = options(key, folders)
    if not choices and key not in keys() and not any(k.startswith(f"{key}.") for k in keys()):
        raise RecipeError(
            f"override {line!r}: there is no key {key!r}{_nearest_key(key)};"
            " `paddock show NAME` prints them all"
        )
    if choices and override.type is not OverrideType.DEL and not override.is_sweep_override():
        _check_choice(override, choices)
    return override


def _nearest_key(key: str) -> str:
    """By the whole dotted key, or by its last word: `max_sequences` is meant with its group."""
    last = key.rpartition(".")[2]
    same = [k for k in keys() if k.rpartition(".")[2] == last]
    return nearest(key, keys()) if not same else f"; nearest is {same[0]!r}"


def _check_choice(override: Override, choices: Sequence[str]) -> None:
    group, value = override.key_or_group, override.value()
    if value in choices:
        return
    if isinstance(value, str) and value:
        raise RecipeError(
            f"override {override.input_line!r}: {group} has no option {value!r}"
            f"{nearest(value, choices)}; it has {', '.join(choices)}"
        )
    example = next((k for k in keys() if k.startswith(f"{group}.")), f"{group}.KEY")
    raise RecipeError(
        f"override {override.input_line!r}: {group} is a group of settings; choose one of"
        f" {', '.join(choices)}, or set a key of it, e.g. {example}=..."
    )


def _values(override: Override) -> Iterator[str]:
    if not override.is_sweep_override():
        yield str(override.input_line)
        return
    if not override.is_discrete_sweep():
        raise RecipeError(
            f"override {override.input_line!r}: an interval has no values to run one by one; list"
            " them, or use range(start,stop,step)"
        )
    values = list(override.sweep_string_iterator())
    if not values:
        raise RecipeError(f"override {override.input_line!r} gives no value at all")
    yield from (f"{override.get_key_element()}={value}" for value in values)


def _malformed(line: str, error: OverrideParseException) -> str:
    if "=" not in line:
        return (
            f"override {line!r}: expected key=value, e.g. limits.max_sequences=16, or group=option,"
            " e.g. quant=int8"
        )
    key, _, value = line.partition("=")
    # The first line says where the grammar stopped; behind "expecting" come its own token names.
    reason = str(error).splitlines()[0].partition(" expecting ")[0].strip()
    if value.startswith("~"):
        reason = "'~' is left to the shell, which replaces it in a word of its own only"
    elif reason.startswith("Lexer"):
        reason = "the value has a character that needs quotes"
    if re.search(r"[\s,()\[\]{}'\":=]|\\", value) or "needs quotes" in reason:
        return f"override {line!r}: {reason}; if it is one text, quote it: '{key}=\"{value}\"'"
    return f"override {line!r}: {reason}"


class _GroupOptions:
    """As much of a Hydra config loader as the override grammar needs."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def get_group_options(self, group_name: str, results_filter: Any = None) -> list[str]:
        return options(group_name, self._folders)
