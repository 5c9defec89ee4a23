"""From what was chosen on the command line to a started recipe, as all commands do it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paddock.commands.arguments import RecipeChoice, UsageError

if TYPE_CHECKING:
    from paddock.commands.prompts import Prompt
    from paddock.llm import LLM
    from paddock.recipes.compose import Composed
    from paddock.recipes.progress import Progress
    from paddock.recipes.schema import Recipe


def compose_choice(choice: RecipeChoice) -> Composed:
    """Compose it; a name or an override that does not exist is wrong usage."""
    from paddock.recipes.any_checkpoint import recipe_for
    from paddock.recipes.compose import compose
    from paddock.recipes.errors import RecipeError

    name, implied = recipe_for(choice.name)
    try:
        return compose(name, (*implied, *choice.overrides), choice.config_dirs)
    except RecipeError as error:
        raise UsageError(str(error)) from error


def sweep(choice: RecipeChoice) -> list[list[str]]:
    """The overrides of each run of `--multirun`."""
    from paddock.recipes.any_checkpoint import recipe_for
    from paddock.recipes.compose import expand_sweep
    from paddock.recipes.errors import RecipeError

    name, implied = recipe_for(choice.name)
    try:
        runs = expand_sweep(name, (*implied, *choice.overrides), choice.config_dirs)
    except RecipeError as error:
        raise UsageError(str(error)) from error
    return [run[len(implied) :] for run in runs]


def progress_of(options: argparse.Namespace) -> Progress:
    """Bars, or silence with `--quiet`."""
    if options.quiet:
        from paddock.recipes.progress import SILENT

        return SILENT
    from paddock.progress_bars import ProgressBars

    return ProgressBars()


def start(recipe: Recipe, progress: Progress, asked: Sequence[tuple[Prompt, Any]]) -> LLM:
    """Build the engine or find it, and start it; before that, see whether the prompts fit."""
    from paddock.llm import LLM
    from paddock.recipes import pipeline

    return LLM.of(pipeline.start(recipe, progress=progress))
