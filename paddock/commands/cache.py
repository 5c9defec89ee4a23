"""The engines that were built: what is there, and deleting what is not needed.

paddock cache list                     every engine, the last used one first
paddock cache prune --days 30          delete what was not used for so long
paddock cache prune --keep-gib 20      delete the least recently used until so much is left
paddock cache prune --all              delete everything
Every prune deletes damaged engines too, and bound weights that no engine uses any more.
The cache lies in $PADDOCK_HOME, or in ~/.cache/paddock.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from paddock.commands.arguments import CommandParser, UsageError
from paddock.commands.terminal import (
    format_bytes,
    format_seconds,
    print_json,
    print_table,
    remark,
)

USAGE = "list|prune [--days N] [--keep-gib X] [--all] [--json]"


def add_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("prune")
    group.add_argument("--days", metavar="N", type=float, help="not used for N days")
    group.add_argument("--keep-gib", metavar="X", type=float, help="until X GiB are left")
    group.add_argument("--all", action="store_true", help="everything")
    parser.add_argument("--json", action="store_true", help="one JSON object an engine")


def run(options: argparse.Namespace) -> int:
    actions = {"list": _list, "prune": _prune}
    word, *more = options.words or [""]
    if word not in actions or more:
        from paddock.graph.errors import nearest

        found = f", found {' '.join(options.words)!r}" if word else ""
        raise UsageError(f"paddock cache: expected list or prune{found}{nearest(word, actions)}")
    return actions[word](options)


def _list(options: argparse.Namespace) -> int:
    if options.all or options.days is not None or options.keep_gib is not None:
        raise UsageError("--all, --days and --keep-gib are for `paddock cache prune`")

    from paddock.recipes.build_cache import BuildCache

    cache = BuildCache()
    engines = cache.all_engines()
    if options.json:
        for engine in engines:
            print_json(asdict(engine))
        return 0
    now = time.time()
    rows = [
        [
            engine.recipe or engine.folder.name,
            engine.engine,
            engine.dtype,
            engine.quant,
            format_bytes(engine.engine_bytes + engine.weights_bytes),
            f"{format_seconds(max(now - engine.last_used, 0.0))} ago",
            engine.problem or str(engine.folder),
        ]
        for engine in engines
    ]
    if rows:
        print_table(["recipe", "engine", "dtype", "quant", "size", "used", "folder"], rows)
    else:
        remark(f"no engines in {cache.root}")
    return 0


def _prune(options: argparse.Namespace) -> int:
    for flag, value in (("--days", options.days), ("--keep-gib", options.keep_gib)):
        if value is not None and not value >= 0:
            raise UsageError(f"{flag}: expected 0 or more, found {value}")

    from paddock.recipes.build_cache import BuildCache

    pruned = BuildCache().prune(
        keep_gib=options.keep_gib, older_than_days=options.days, everything=options.all
    )
    if options.json:
        print_json(asdict(pruned))
        return 0
    if not options.quiet:
        for folder in pruned.removed:
            print(f"deleted {folder}")
        for folder in pruned.busy:
            print(f"left    {folder}: a process is at work on it")
        print(f"{len(pruned.removed)} deleted, {format_bytes(pruned.freed_bytes)} freed")
    return 0
