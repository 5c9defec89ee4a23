"""A recipe as it is resolved, and where each of its values comes from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from paddock.commands.arguments import CommandParser, add_recipe_arguments, recipe_choice
from paddock.commands.recipe import compose_choice
from paddock.commands.terminal import faint, print_json

USAGE = "NAME [key=value ...] [--json]"


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--json", action="store_true", help="values and sources as one object")


def run(options: argparse.Namespace) -> int:
    composed = compose_choice(recipe_choice(options))
    values = composed.recipe.model_dump(mode="json")
    if options.json:
        print_json({"recipe": values, "sources": dict(composed.sources)}, indent=2)
        return 0
    lines = list(_lines(values, composed.sources))
    # A long value pushes its own remark aside, not everybody's.
    width = max(len(text) for text, source in lines if source and len(text) <= 40)
    for text, source in lines:
        print(f"{text:{width}}  {faint('# ' + source)}" if source else text)
    return 0


def _lines(
    values: Mapping[str, Any], sources: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """YAML lines, each with its source; JSON's values are YAML's."""
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:", ""
            yield from _lines(value, sources, f"{prefix}{key}.")
        else:
            written = json.dumps(value, ensure_ascii=False)
            yield f"{indent}{key}: {written}", sources.get(prefix + key, "default")
