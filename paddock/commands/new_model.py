"""Write the files of a new architecture, which begins as another: model, map, test, recipe.

NAME is the model_type of its config.json. Without --into, a package of its own is written into
the folder paddock-NAME, which Paddock finds by its entry point once it is installed; into a
checkout of Paddock, the files go to their rooms, and the class into the registry. Nothing is
overwritten.
docs/add-a-model.md goes on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paddock.commands.arguments import CommandParser, UsageError

USAGE = "NAME --like FAMILY [--into FOLDER] [--checkpoint REPOSITORY]"


def add_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("what to write")
    group.add_argument("--like", metavar="FAMILY", help="a file of models/, or a class: llama")
    group.add_argument("--into", metavar="FOLDER", help="a checkout of Paddock, or a new folder")
    group.add_argument("--checkpoint", metavar="REPOSITORY", help="what its recipe opens (./NAME)")


def run(options: argparse.Namespace) -> int:
    if len(options.words) != 1 or options.like is None:
        raise UsageError("expected a name and --like, e.g. paddock new-model cwm --like llama")
    (name,) = options.words

    from paddock.models.skeleton import REGISTRY, skeleton

    folder = Path(options.into if options.into is not None else f"paddock-{name}").expanduser()
    inside = (folder / REGISTRY).is_file()
    checkpoint = options.checkpoint or f"./{name}"
    made = skeleton(name, options.like, inside=inside, checkpoint=checkpoint)
    made.write(folder)
    for path in made.files:
        print(folder / path)
    if options.quiet:
        return 0
    if inside:
        print(f"and {made.class_name} in {folder / REGISTRY}")
        print("the tables: python -m tests.golden.make_architectures")
    else:
        print(f"install it: pip install -e {folder}")
    print(f"its test, which passes as it is: cd {folder} && python -m pytest {made.test}")
    return 0
