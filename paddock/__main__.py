"""The command line: `paddock COMMAND NAME [key=value ...]`.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 130 interrupted (Ctrl-C), 141 the reader
of the output went away. Errors are one line on stderr; `--debug` adds the traceback.

Nothing is imported here but what Python has loaded anyway: Ctrl-C is taken from the first moment,
and `paddock --help` takes no longer than Python does.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from paddock.commands.arguments import CommandParser

COMMANDS = {
    "list": "the recipes, one line each",
    "show": "a recipe as it is resolved, and where each value comes from",
    "build": "build the engine of a recipe, or find it in the cache",
    "inspect": "what is inside a built engine: modules, weights, kernels, memory",
    "refit": "give a built engine the weights of another checkpoint, without compiling",
    "generate": "continue prompts: from the command line, stdin or a file",
    "chat": "talk with a model",
    "serve": "serve a recipe over HTTP: OpenAI's API, metrics, a page to chat",
    "embed": "vectors of texts, as JSON lines",
    "transcribe": "write down what is said in sound files: text, subtitles, JSON",
    "classify": "labels of texts, scores of pairs, as JSON lines",
    "compare": "where a model leaves its reference: the first module, and the error's shape",
    "new-model": "the files of a new architecture that begins as another one",
    "bench": "measure speed, latency, memory and the fraction of memory bandwidth",
    "cache": "list or prune the engines that were built",
    "demo": "generate text from the bundled checkpoint: a first look",
}

FAILED, WRONG_USAGE, INTERRUPTED, READER_GONE = 1, 2, 130, 141


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        from paddock.commands import interrupt

        interrupt.watch()
        try:
            status = _run(arguments)
            sys.stdout.flush()
            return status
        except Exception as error:
            if interrupt.struck():
                raise KeyboardInterrupt from error
            return _fail(error, "--debug" in arguments)
        finally:
            interrupt.next_one_kills()
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    from paddock.commands.terminal import survive_any_locale, warn_in_one_line

    warn_in_one_line()
    survive_any_locale()
    first = next((i for i, word in enumerate(arguments) if not word.startswith("-")), None)
    parser = _top_parser()
    options = parser.parse(arguments[:first])
    if options.version:
        return _print_version()
    if first is None or options.help:
        print(parser.format_help(), end="")
        return 0
    name, rest = arguments[first], arguments[first + 1 :]
    if name == "help":
        return _run([*rest[:1], "--help"])
    if name not in COMMANDS:
        _unknown_command(name)
    if _is_launched():
        return _run_as_rank(name, rest, options.quiet)
    return _run_command(name, rest, options.quiet)


def _run_command(name: str, rest: list[str], quiet: bool) -> int:
    from importlib import import_module

    from paddock.commands.arguments import CommandParser

    module = name.replace("-", "_")
    if name == "bench" and rest[:1] == ["serve"]:
        module, rest = "bench_serve", rest[1:]
    command: Any = import_module(f"paddock.commands.{module}")
    parser = CommandParser(f"paddock {name}", command.USAGE, command.__doc__ or "")
    command.add_arguments(parser)
    given = parser.parse(rest)
    if given.help:
        print(parser.format_help(), end="")
        return 0
    given.quiet |= quiet
    status: int = command.run(given)
    return status


def _is_launched() -> bool:
    return any(name in os.environ for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"))


def _run_as_rank(name: str, rest: list[str], quiet: bool) -> int:
    """Under `mpirun -n 4 paddock ...` the first process runs the command, and the others are
    ranks of it until it ends."""
    from paddock.runtime.distributed import launch

    found = launch.launched()
    launch.note(rest)
    if found is not None and found.rank:
        return launch.follow()
    try:
        return _run_command(name, rest, quiet)
    finally:
        launch.dismiss()


def _fail(error: Exception, debug: bool) -> int:
    """Say what went wrong; the exit code."""
    if isinstance(error, BrokenPipeError):
        _give_up_stdout()
        return READER_GONE
    if debug:
        import traceback

        traceback.print_exception(error)
    try:
        sys.stdout.flush()
    except OSError:
        _give_up_stdout()
    return _report(error)


def _give_up_stdout() -> None:
    """Python flushes stdout once more at exit, which must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _top_parser() -> CommandParser:
    from paddock.commands.arguments import CommandParser

    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    parser = CommandParser(
        "paddock",
        "COMMAND [NAME] [key=value ...] [options]",
        f"Builds and serves language-model engines from recipes.\n\n{lines}\n\n"
        "Each command explains itself: paddock COMMAND --help. A first look: paddock demo",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    return parser


def _print_version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("paddock")
    except PackageNotFoundError:  # run from a checkout that is not installed
        found = "(not installed)"
    print(f"paddock {found}")
    return 0


def _unknown_command(name: str) -> NoReturn:
    from paddock.commands.arguments import UsageError
    from paddock.graph.errors import nearest

    raise UsageError(
        f"no command {name!r}{nearest(name, COMMANDS) or '; there are ' + ', '.join(COMMANDS)}"
    )


def _report(error: Exception) -> int:
    """Say what is wrong in one line; the exit code."""
    from paddock.commands.arguments import UsageError
    from paddock.graph.errors import PaddockError

    if isinstance(error, UsageError):
        message, status = str(error), WRONG_USAGE
    elif isinstance(error, PaddockError):
        message, status = str(error), FAILED
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        message, status = f"{where}{error.strerror}", FAILED
    elif isinstance(error, MemoryError):
        message, status = "out of memory; smaller limits.* or a smaller quant= need less", FAILED
    else:
        # Not an error that a user can cause: the next step is to tell us.
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message, status = f"internal error: {what} (--debug shows where; please report it)", FAILED
    print(f"paddock: error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
