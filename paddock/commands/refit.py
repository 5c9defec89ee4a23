"""Give a built engine the weights of another checkpoint of the same model, without compiling.

paddock refit demo-3772eb76eb5b6a2e --checkpoint ./finetuned     an engine of `paddock cache list`
paddock refit ./engines/mine --checkpoint Org/Name@revision      or its folder

Before a byte is read, the new checkpoint is proved to bind. The result is checked against the
reference engine and kept beside the old one; the recipe with checkpoint= finds it.
"""

from __future__ import annotations

import argparse

from paddock.commands.arguments import CommandParser, UsageError
from paddock.commands.build import tell
from paddock.commands.recipe import progress_of

USAGE = "ENGINE --checkpoint FOLDER|REPOSITORY [--json]"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="NEW", help="a folder, or a hub repository Org/Name[@revision]"
    )
    parser.add_argument("--json", action="store_true", help="the result as one object")


def run(options: argparse.Namespace) -> int:
    if len(options.words) != 1 or not options.checkpoint:
        raise UsageError(f"expected paddock refit {USAGE}; `paddock cache list` names engines")

    from paddock.recipes.build_cache import BuildCache
    from paddock.recipes.pipeline import refit

    donor = BuildCache().named(options.words[0])
    built = refit(donor, options.checkpoint, progress=progress_of(options))
    tell(built, str(built.manifest["recipe"]), options)
    return 0
