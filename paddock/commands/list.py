"""The recipes that can be named, one line each: family, size, default engine, what it needs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from paddock.commands.arguments import CommandParser, add_config_dir, config_dirs, no_words
from paddock.commands.terminal import print_json, print_table, remark

USAGE = "[--config-dir DIR] [--json]"


def add_arguments(parser: CommandParser) -> None:
    add_config_dir(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(options: argparse.Namespace) -> int:
    no_words(options, "paddock list")
    folders = config_dirs(options)

    from paddock.recipes.compose import available

    recipes = available(folders)
    if options.json:
        for recipe in recipes:
            print_json(asdict(recipe))
        return 0
    rows = [
        [recipe.name, recipe.family, recipe.size, recipe.engine, recipe.needs]
        for recipe in recipes
        if not recipe.problem
    ]
    print_table(["name", "family", "size", "engine", "needs"], rows)
    for recipe in recipes:
        if recipe.problem:
            remark(f"{recipe.file}: cannot be used: {recipe.problem}")
    return 0
