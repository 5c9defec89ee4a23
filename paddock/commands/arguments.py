"""What a command line consists of: options, a recipe's name, and Hydra overrides."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


class UsageError(Exception):
    """The command line cannot be meant as it is; exit code 2.

    Not a `PaddockError`: this file is read by `paddock --help`, and must not import NumPy.
    """


class CommandParser(argparse.ArgumentParser):
    """Options in any order among words; mistakes raise `UsageError` and name what comes near."""

    def __init__(self, prog: str, usage: str, description: str) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        common = self.add_argument_group("always")
        common.add_argument("-h", "--help", action="store_true", help="print this and exit")
        common.add_argument("-q", "--quiet", action="store_true", help="no progress, no remarks")
        common.add_argument("--debug", action="store_true", help="tracebacks with errors")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """The options; `words` has what is no option, in order."""
        # No positional arguments are declared, so argparse hands back every word and every
        # option that it does not know, in order, wherever they stand among the known options.
        options, rest = self.parse_known_args(arguments)
        words: list[str] = []
        for index, word in enumerate(rest):
            if word == "--":
                words += rest[index + 1 :]
                break
            if word.startswith("-") and word != "-" and not options.help:
                self._unknown_option(word)
            words.append(word)
        options.words = words
        return options

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help)")

    def _unknown_option(self, word: str) -> NoReturn:
        from paddock.graph.errors import nearest

        name = word.partition("=")[0]
        known = self._option_string_actions
        raise UsageError(
            f"{self.prog} has no option {name}{nearest(name, known)} ({self.prog} --help)"
        )


@dataclass(frozen=True)
class RecipeChoice:
    """Which recipe, with which overrides, found where."""

    name: str
    overrides: tuple[str, ...]
    config_dirs: tuple[Path, ...]


def add_recipe_arguments(parser: CommandParser) -> None:
    """How every command that takes a recipe takes it."""
    group = parser.add_argument_group(
        "recipe",
        "NAME is a recipe (paddock list); key=value changes it in Hydra's override grammar:\n"
        "engine=openvino quant=int8 limits.max_sequences=16",
    )
    group.add_argument("-cn", "--config-name", metavar="NAME", help="the same as NAME")
    add_config_dir(group)


def add_config_dir(group: argparse._ActionsContainer) -> None:
    """Where recipes of the user's own are."""
    group.add_argument(
        "--config-dir",
        metavar="DIR",
        action="append",
        default=[],
        help="a folder of your own recipes; may be given several times",
    )


def recipe_choice(options: argparse.Namespace) -> RecipeChoice:
    """Tell the recipe's name from the overrides. Raises `UsageError`."""
    names = [word for word in options.words if not _is_override(word)]
    overrides = tuple(word for word in options.words if _is_override(word))
    if options.config_name is not None:
        names = [options.config_name, *names]
    if not names:
        raise UsageError("which recipe? Give its name; `paddock list` shows them")
    if len(names) > 1:
        raise UsageError(
            f"expected one recipe and overrides (key=value), found {names[0]!r} and {names[1]!r}"
        )
    return RecipeChoice(names[0], overrides, config_dirs(options))


def config_dirs(options: argparse.Namespace) -> tuple[Path, ...]:
    """The `--config-dir` folders, which must be there. Raises `UsageError`."""
    folders = tuple(Path(folder).expanduser() for folder in options.config_dir)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--config-dir {folder}: no such folder")
    return folders


def no_words(options: argparse.Namespace, command: str) -> None:
    """Raise `UsageError` where a command that takes no words was given some."""
    if options.words:
        raise UsageError(f"{command} takes no {options.words[0]!r} ({command} --help)")


def _is_override(word: str) -> bool:
    """`key=value`, `+key=value`, `++key=value`, `~key` (Hydra's override grammar)."""
    return word.startswith("~") or bool(re.match(r"\+{0,2}[^\s=]+=", word))
