"""Build the engine of a recipe, or find it in the cache; says where it is and why it was built."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from paddock.commands.arguments import CommandParser, add_recipe_arguments, recipe_choice
from paddock.commands.recipe import compose_choice, progress_of
from paddock.commands.terminal import format_bytes, format_seconds, print_json

if TYPE_CHECKING:
    from paddock.recipes.builder import Estimate
    from paddock.recipes.pipeline import BuiltEngine

USAGE = "NAME [key=value ...] [--rebuild | --estimate] [--json]"


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--rebuild", action="store_true", help="build it even where it is cached")
    parser.add_argument(
        "--estimate", action="store_true", help="say what it takes, and build nothing"
    )
    parser.add_argument("--json", action="store_true", help="the result as one object")


def run(options: argparse.Namespace) -> int:
    recipe = compose_choice(recipe_choice(options)).recipe

    from paddock.recipes.pipeline import build, estimate

    if options.estimate:
        _tell_estimate(estimate(recipe, progress=progress_of(options)), options.json)
        return 0
    built = build(recipe, progress=progress_of(options), rebuild=options.rebuild)
    tell(built, recipe.name, options)
    return 0


def _tell_estimate(found: Estimate, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    print(f"reads    {format_bytes(found.read_bytes)} of checkpoint")
    print(f"writes   {format_bytes(found.weights_bytes)} of bound weights")
    print(f"         {format_bytes(found.engine_bytes)} of engine")
    print(f"memory   {format_bytes(found.memory_bytes)}")
    print(f"time     {format_seconds(found.seconds)}")


def tell(built: BuiltEngine, recipe: str, options: argparse.Namespace) -> None:
    """Print what came of it, as `--json` and `--quiet` ask."""
    if options.json:
        print_json(
            {
                "recipe": recipe,
                "folder": str(built.folder),
                "cached": built.cached,
                "reasons": built.reasons,
                "timings": built.timings,
            }
        )
    elif options.quiet:
        print(built.folder)
    else:
        for line in describe(built):
            print(line)


def describe(built: BuiltEngine) -> list[str]:
    """What was built, where it is kept, and why it was not found in the cache."""
    stages = ", ".join(f"{stage} {format_seconds(s)}" for stage, s in built.timings.items())
    lines = ["found in the cache" if built.cached else f"built: {stages}"]
    lines += [f"because {reason}" for reason in built.reasons if not built.cached]
    return [*lines, f"kept in {built.folder}"]
