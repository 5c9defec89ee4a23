"""Find the first module in which a model leaves its reference, and the shape of the error.

The model runs on the recipe's engine, and beside it transformers (where it is installed and has
the class), or the NumPy engine in f64, on the same tokens. What passes between modules is compared
by the modules' paths, which are the checkpoint's. In f32 unless dtype= says otherwise.
The exit code is 1 where they differ.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from paddock.commands.arguments import (
    CommandParser,
    RecipeChoice,
    UsageError,
    add_recipe_arguments,
    recipe_choice,
)
from paddock.commands.recipe import compose_choice
from paddock.commands.terminal import print_json, print_table

if TYPE_CHECKING:
    from paddock.recipes.parity.compare import Compared, Comparison

USAGE = "NAME [key=value ...] [--checkpoint FOLDER] [--tokens N,...] [--json]"
DRAWN = 37


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument("--checkpoint", metavar="FOLDER", help="the same as checkpoint=FOLDER")
    group.add_argument("--tokens", metavar="ID,...", help=f"token ids ({DRAWN} random ones)")
    group.add_argument(
        "--reference", choices=("auto", "transformers", "f64"), default="auto", help="(auto)"
    )
    group.add_argument(
        "--twin", metavar="CLASS", help="transformers' class with the same mathematics and names"
    )
    group.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=1e-4,
        help="of what is the same, relative to the largest value (1e-4)",
    )
    group.add_argument("--all", action="store_true", help="list every module that was compared")
    group.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    choice = recipe_choice(options)
    tokens = _tokens(options.tokens)
    if not options.tolerance > 0:
        raise UsageError(f"--tolerance: expected a number above 0, found {options.tolerance}")
    given = [f"checkpoint={options.checkpoint}"] if options.checkpoint is not None else []
    if not any(word.lstrip("+").startswith("dtype=") for word in choice.overrides):
        given.append("dtype=f32")
    choice = RecipeChoice(choice.name, (*given, *choice.overrides), choice.config_dirs)
    recipe = compose_choice(choice).recipe

    from paddock.recipes.parity.compare import compare

    found = compare(recipe, tokens, options.tolerance, options.reference, options.twin)
    if options.json:
        print_json(_record(found, recipe.engine.name))
    else:
        _print(found, recipe.engine.name, everything=options.all)
    return 0 if found.fault is None else 1


def _tokens(given: str | None) -> list[int] | int:
    if given is None:
        return DRAWN
    try:
        return [int(word) for word in given.split(",")]
    except ValueError:
        raise UsageError(f"--tokens: expected ids like 1,52,7, found {given}") from None


def _record(found: Comparison, engine: str) -> dict[str, Any]:
    fault = found.fault
    return {
        "architecture": found.architecture,
        "engine": engine,
        "reference": found.reference,
        "tokens": found.tokens,
        "agrees": fault is None,
        "fault": fault
        and {
            "module": fault.module,
            "first": str(fault.at),
            "after": fault.after,
            "said": fault.difference.sentences(),
            **asdict(fault.difference),
        },
        "modules": [
            {"path": v.path, "way": v.way, "part": v.part, "error": v.error} for v in found.values
        ],
    }


def _print(found: Comparison, engine: str, *, everything: bool) -> None:
    fault = found.fault
    shown = [
        v for v in found.values if everything or v.is_trunk or (fault and _is_near(v, fault.at))
    ]
    print_table(
        ("module", "error"),
        [
            (str(v), f"{v.error:.1e}" + (" <- first" if fault and v is fault.at else ""))
            for v in shown
        ],
    )
    compared = f"{found.architecture} on {engine}, {found.tokens} tokens, against {found.reference}"
    if fault is None:
        worst = max((v.error for v in found.values if v.is_trunk), default=0.0)
        print(f"\n{compared}: they agree; the largest error between blocks is {worst:.1e}")
        return
    after = f", after {fault.after}" if fault.after else ""
    print(f"\n{compared}:\nthe first that differs is {fault.at}, by {fault.difference.error:.1e}")
    print(f"look in {fault.module or 'the model'}{after}")
    for sentence in fault.difference.sentences():
        print(f"- {sentence}")
    print("rows down, columns across; darker is worse:")
    print("\n".join(fault.difference.picture))


def _is_near(value: Compared, at: Compared) -> bool:
    """Whether it is of the block in which the first difference is."""
    parent = at.path.rpartition(".")[0]
    return value.path.startswith(parent) if parent else value is at
