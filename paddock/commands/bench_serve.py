"""Measure a served recipe: latency against throughput, at request rates that grow.

  paddock bench serve demo --rates 2,8,32 --plot serve.png

Starts `paddock serve NAME` in a process of its own and sends it random prompts over HTTP, each
streamed, as a Poisson process of each rate. `--rates all` sends them all at once. With --multirun
every combination of overrides is measured, and drawn as a line of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddock.commands.arguments import CommandParser, UsageError, add_recipe_arguments
from paddock.commands.arguments import recipe_choice as choose
from paddock.commands.recipe import compose_choice, sweep
from paddock.commands.terminal import format_seconds, print_json, print_table, remark

if TYPE_CHECKING:
    from paddock.commands.arguments import RecipeChoice
    from paddock.runtime.server.load import Load, Stream

USAGE = "serve NAME [key=value ...] [--rates 1,4,16,all] [--multirun] [--plot FILE] [--json]"
AT_ONCE = "all"


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--rates",
        metavar="R,...",
        default="1,4,16",
        help="requests a second, or `all` at once (1,4,16)",
    )
    group.add_argument("--requests", metavar="N", type=int, default=64, help="at each rate (64)")
    group.add_argument("--prompt-tokens", metavar="N", type=int, default=128, help="(128)")
    group.add_argument("--new-tokens", metavar="N", type=int, default=64, help="(64)")
    group.add_argument(
        "--multirun", "-m", action="store_true", help="run every combination of the values given"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object a run")
    group.add_argument("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf")


def run(options: argparse.Namespace) -> int:
    choice = choose(options)
    rates = _rates(options)
    if options.plot is not None:
        from paddock.commands.bench_plot import check_plot

        check_plot(Path(options.plot))
    runs = sweep(choice) if options.multirun else [list(choice.overrides)]
    reports = []
    for overrides in runs:
        reports.append(_measure(choice, overrides, rates, options))
        if options.json:
            print_json(reports[-1])
        else:
            _print(reports[-1])
    if options.plot is not None:
        from paddock.commands.bench_plot import draw_serving

        draw_serving(reports, Path(options.plot))
        remark(f"drawn to {options.plot}")
    return 0


def _rates(options: argparse.Namespace) -> list[float | None]:
    """None: all at once."""
    if options.prompt_tokens < 1 or options.new_tokens < 2 or options.requests < 2:
        raise UsageError("expected --prompt-tokens from 1, --new-tokens and --requests from 2")
    rates: list[float | None] = []
    for word in options.rates.split(","):
        try:
            rates.append(None if word == AT_ONCE else float(word))
        except ValueError:
            rates.append(-1.0)
    if not rates or any(rate is not None and not 0 < rate < 1e6 for rate in rates):
        raise UsageError(f"--rates: expected numbers like 1,4,16, or all; found {options.rates}")
    return rates


def _measure(
    choice: RecipeChoice,
    overrides: list[str],
    rates: list[float | None],
    options: argparse.Namespace,
) -> dict[str, Any]:
    from paddock.commands.arguments import RecipeChoice
    from paddock.runtime.server.load import Load

    # What is wrong with the recipe is said here, in one line, and not by the other process.
    compose_choice(RecipeChoice(choice.name, tuple(overrides), choice.config_dirs))
    folders = [word for folder in choice.config_dirs for word in ("--config-dir", str(folder))]
    serving = subprocess.Popen(
        [
            *(sys.executable, "-m", "paddock", "serve", choice.name, *overrides, *folders),
            *("server.port=0", "server.log_requests=false", "--json", "--quiet"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        line = serving.stdout.readline()
        if not line:
            raise UsageError(f"paddock serve {choice.name} did not start; its error is above")
        told = json.loads(line)
        load = Load(told["model"], told["vocab_size"], options.prompt_tokens, options.new_tokens)
        points = asyncio.run(_all_rates(told["url"], load, rates, options.requests))
    finally:
        serving.terminate()
        serving.wait()
        if serving.stdout is not None:
            serving.stdout.close()
    return {
        "recipe": choice.name,
        "overrides": overrides,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "requests": options.requests,
        "points": points,
    }


async def _all_rates(
    url: str, load: Load, rates: list[float | None], requests: int
) -> list[dict[str, Any]]:
    from paddock.runtime.server.load import at_rate, together

    await together(url, load, 4, seed=99)  # the first steps are slower
    points = []
    for number, rate in enumerate(rates):
        asking = (
            together(url, load, requests, seed=number)
            if rate is None
            else at_rate(url, load, rate, requests, seed=number)
        )
        points.append({"rate": rate, **_figures(await asking)})
    return points


def _figures(streams: list[Stream]) -> dict[str, Any]:
    from dataclasses import asdict

    from paddock.runtime.measure import Percentiles
    from paddock.runtime.server.load import tokens_per_s

    good = [stream for stream in streams if stream.status == 200 and stream.pieces]
    figures: dict[str, Any] = {
        "answered": len(good),
        "refused": sum(stream.status == 429 for stream in streams),
    }
    if not good:
        return figures
    span = max(s.ended for s in good) - min(s.sent for s in good)
    between = [gap for stream in good for gap in stream.between_s]
    return figures | {
        "tokens_per_s": tokens_per_s(good),
        "requests_per_s": len(good) / span,
        "to_first_token_s": asdict(Percentiles.of([s.to_first_s for s in good])),
        "between_tokens_s": asdict(Percentiles.of(between)) if between else None,
        "to_last_token_s": asdict(Percentiles.of([s.ended - s.sent for s in good])),
    }


def _print(report: dict[str, Any]) -> None:
    changed = " ".join(report["overrides"])
    print(
        f"{report['recipe']}{' ' + changed if changed else ''}: {report['requests']} requests at"
        f" each rate, {report['prompt_tokens']} tokens in, {report['new_tokens']} out"
    )
    rows = []
    for point in report["points"]:
        rate = AT_ONCE if point["rate"] is None else f"{point['rate']:g}"
        if "tokens_per_s" not in point:
            rows.append([rate, str(point["answered"]), "", "", "", "", "", ""])
            continue
        first, between = point["to_first_token_s"], point["between_tokens_s"]
        rows.append(
            [
                rate,
                f"{point['answered']}",
                f"{point['requests_per_s']:.1f}",
                f"{point['tokens_per_s']:.0f}",
                format_seconds(first["p50"]),
                format_seconds(first["p99"]),
                format_seconds(between["p50"]) if between else "",
                format_seconds(between["p99"]) if between else "",
            ]
        )
    header = ["asked/s", "answered", "done/s", "tokens/s", "first p50", "p99", "between p50", "p99"]
    print_table(header, rows)
