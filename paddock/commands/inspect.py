"""What is inside a built engine: its modules, their ops and weights, kernels, memory.

paddock inspect demo-3772eb76eb5b6a2e            an engine of `paddock cache list`, or its folder
paddock inspect demo-3772eb76eb5b6a2e --html engine.html      a page to look at
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from paddock.commands.arguments import CommandParser, UsageError
from paddock.commands.terminal import faint, format_bytes, print_json, print_table

if TYPE_CHECKING:
    from paddock.recipes.inspection import Inspection, ModuleReport, RankReport

USAGE = "ENGINE [--json | --html FILE] [--no-kernels]"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="everything as one object")
    parser.add_argument("--html", metavar="FILE", help="write one page that needs nothing else")
    parser.add_argument(
        "--no-kernels",
        action="store_true",
        help="do not ask for kernels: openvino chooses them on opening, which takes memory",
    )


def run(options: argparse.Namespace) -> int:
    if len(options.words) != 1:
        raise UsageError(f"expected paddock inspect {USAGE}; `paddock cache list` names engines")
    if options.json and options.html:
        raise UsageError("--json and --html: one of them")

    from paddock.recipes.build_cache import BuildCache
    from paddock.recipes.inspection import inspect

    found = inspect(BuildCache().named(options.words[0]), kernels=not options.no_kernels)
    if options.json:
        print_json(found.as_json())
    elif options.html:
        from paddock.commands.inspect_page import page

        Path(options.html).write_text(page(found), "utf-8")
        print(options.html)
    else:
        _print(found)
    return 0


def _print(found: Inspection) -> None:
    for name, value in found.facts.items():
        print(f"{faint(name)}  {value}")
    for number, rank in enumerate(found.ranks):
        print()
        if len(found.ranks) > 1:
            print(f"rank {number}")
        _print_memory(rank)
        print()
        print_table(["module", "ops", "weights"], list(_module_rows(rank.model, 0)))
        if rank.kernels:
            print()
            rows = [[name, str(count)] for name, count in rank.kernels.items()]
            print_table(["kernel", "times"], rows)


def _print_memory(rank: RankReport) -> None:
    print(f"{faint('weights')}  {format_bytes(rank.weight_bytes)}")
    if rank.cache_bytes_per_token:
        print(f"{faint('cache')}  {format_bytes(rank.cache_bytes_per_token)} a token")
    if rank.state_bytes_per_sequence:
        print(f"{faint('state')}  {format_bytes(rank.state_bytes_per_sequence)} a sequence")
    for name, size in rank.files.items():
        print(f"{faint(name)}  {format_bytes(size)}")


def _module_rows(module: ModuleReport, depth: int) -> list[list[str]]:
    """Layers that are alike are one row, as `0-5 (6 alike)`."""
    from paddock.recipes.inspection import folded

    rows = []
    for alike, first in folded(module.modules):
        name = first.name
        if len(alike) > 1:
            name = f"{first.name}-{alike[-1].name} ({len(alike)} alike)"
        size = sum(inner.weight_bytes for inner in alike)
        ops = ", ".join(op if n == 1 else f"{n} {op}" for op, n in first.ops.items())
        rows.append(["  " * depth + name, ops, format_bytes(size) if size else ""])
        rows += _module_rows(first, depth + 1)
    return rows
