"""Measure a recipe: prefill and decode tokens/s, latencies, memory, and how near to its limit.

Random prompts arrive together, in batches of each size, through the same loop that serves
requests. Decoding reads every weight for every step, so memory bandwidth bounds it: that is
measured here too, before and after, and the fraction that decoding reached is reported.
--multirun sweeps in Hydra's grammar, each run in a process of its own:
  paddock bench demo --multirun quant=none,int8 engine.threads=1,2
`paddock bench serve NAME` measures the same over HTTP, at growing request rates.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddock.commands.arguments import (
    CommandParser,
    RecipeChoice,
    UsageError,
    add_recipe_arguments,
    recipe_choice,
)
from paddock.commands.recipe import compose_choice, progress_of, sweep
from paddock.commands.terminal import (
    format_bytes,
    format_seconds,
    print_json,
    print_table,
    remark,
)

if TYPE_CHECKING:
    from paddock.graph import Graph
    from paddock.llm import LLM
    from paddock.recipes.pipeline import Running
    from paddock.runtime.measure import Measurement, Workload

USAGE = "NAME [key=value ...] [--batch-sizes 1,4,8] [--multirun] [--plot FILE] [--json]"


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--batch-sizes",
        metavar="N,...",
        default="1,4,8",
        help="sequences that run together (1,4,8)",
    )
    group.add_argument("--prompt-tokens", metavar="N", type=int, default=128, help="(128)")
    group.add_argument("--new-tokens", metavar="N", type=int, default=64, help="(64)")
    group.add_argument("--rounds", metavar="N", type=int, default=3, help="of each batch size (3)")
    group.add_argument("--rebuild", action="store_true", help="build even if cached, to time it")
    group.add_argument(
        "--multirun", "-m", action="store_true", help="run every combination of the values given"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object a run")
    group.add_argument("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf")


def run(options: argparse.Namespace) -> int:
    choice = recipe_choice(options)
    workloads = _workloads(options)
    if options.plot is not None:
        from paddock.commands.bench_plot import check_plot

        check_plot(Path(options.plot))
    if options.multirun:
        return _sweep(choice, options)
    report = _measure(choice, workloads, options)
    if options.json:
        print_json(report)
    else:
        _print(report)
    if options.plot is not None:
        _plot([report], Path(options.plot))
    return 0


def _workloads(options: argparse.Namespace) -> list[Workload]:
    from paddock.runtime.measure import Workload

    if options.prompt_tokens < 1 or options.new_tokens < 2 or options.rounds < 1:
        raise UsageError("expected --prompt-tokens and --rounds from 1, --new-tokens from 2")
    try:
        sizes = [int(size) for size in options.batch_sizes.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--batch-sizes: expected numbers like 1,4,8, found {options.batch_sizes}")
    return [Workload(size, options.prompt_tokens, options.new_tokens) for size in sizes]


# --- one run ------------------------------------------------------------------------------------


def _measure(
    choice: RecipeChoice, workloads: list[Workload], options: argparse.Namespace
) -> dict[str, Any]:
    """Build, open, measure; everything that --json prints."""
    from paddock.runtime.bandwidth import measure_apart
    from paddock.runtime.measure import bytes_read_per_step, measure

    recipe = compose_choice(choice).recipe
    progress = progress_of(options)

    from paddock.llm import LLM
    from paddock.recipes import pipeline
    from paddock.recipes.machine import measure as measure_machine

    built = pipeline.build(recipe, progress=progress, rebuild=options.rebuild)
    build_memory = _peak_memory()
    _forget_peak()
    running = pipeline.start(recipe, progress=progress)
    with LLM.of(running) as llm:
        _check_limits(llm, workloads)
        threads = recipe.engine.threads or measure_machine().cores
        weight_bytes = bytes_read_per_step(_graph(running))
        cache_bytes = running.session.block_bytes / running.session.block_size
        stages = len(workloads) + 2
        progress.update("measure", 0, stages, "")
        bandwidths = [measure_apart(threads)]
        measured: list[Measurement] = []
        for number, workload in enumerate(workloads, 1):
            progress.update("measure", number, stages, "")
            vocab_size = running.session.vocab_size
            measured.append(measure(running.loop, vocab_size, workload, rounds=options.rounds))
        progress.update("measure", stages - 1, stages, "")
        memory = _peak_memory()
        bandwidths.append(measure_apart(threads))
        progress.update("measure", stages, stages, "")
        bandwidth = max(bandwidths)
    return {
        "recipe": recipe.name,
        "overrides": list(choice.overrides),
        "engine": recipe.engine.name,
        "quant": recipe.quant.weights,
        "threads": threads,
        "cached": built.cached,
        "build_s": built.manifest["seconds"],
        "build_stages_s": built.timings,
        "start_stages_s": running.timings,
        "build_peak_memory_bytes": build_memory,
        "peak_memory_bytes": memory,
        "weight_bytes_read_per_step": weight_bytes,
        "cache_bytes_per_token": cache_bytes,
        "bandwidth_bytes_per_s": bandwidth,
        "bandwidths_bytes_per_s": bandwidths,
        "batches": [_batch(m, weight_bytes, cache_bytes, bandwidth) for m in measured],
    }


def _graph(running: Running) -> Graph:
    """What the engine was built from; made again, which takes milliseconds."""
    from paddock.graph import DType
    from paddock.recipes import pipeline
    from paddock.recipes.tracing import trace_graph

    recipe, built = running.recipe, running.built
    architecture = pipeline.read_architecture(recipe, built.checkpoint)
    dtype = DType(built.manifest["key_parts"]["dtype"])
    return trace_graph(recipe, architecture, dtype).graph


def _check_limits(llm: LLM, workloads: list[Workload]) -> None:
    limits = llm.running.loop.limits
    for workload in workloads:
        if workload.sequences > limits.max_sequences:
            raise UsageError(
                f"--batch-sizes: {workload.sequences} sequences together are more than "
                f"limits.max_sequences ({limits.max_sequences})"
            )
        tokens = workload.prompt_tokens + workload.new_tokens
        if tokens > limits.max_context:
            raise UsageError(
                f"--prompt-tokens and --new-tokens are {tokens} together, more than "
                f"limits.max_context ({limits.max_context})"
            )


def _batch(
    measured: Measurement, weight_bytes: int, cache_bytes: float, bandwidth: float
) -> dict[str, Any]:
    read = measured.decode_bytes_per_s(weight_bytes, cache_bytes)
    decode = measured.decode_tokens_per_s
    workload = measured.workload
    return {
        "sequences": workload.sequences,
        "prompt_tokens": workload.prompt_tokens,
        "new_tokens": workload.new_tokens,
        "rounds": measured.rounds,
        "prefill_tokens_per_s": measured.prefill_tokens_per_s,
        "decode_tokens_per_s": decode,
        "decode_tokens_per_s_per_sequence": decode and decode / workload.sequences,
        "to_first_token_s": vars(measured.to_first_token_s),
        "between_tokens_s": vars(measured.between_tokens_s),
        "decode_bytes_per_s": read,
        "bandwidth_fraction": read and read / bandwidth,
        "overhead_fraction": measured.overhead,
    }


def _peak_memory() -> int | None:
    """Bytes of this process that were resident at most; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
        return None if peak is None else int(peak)
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss if sys.platform == "darwin" else peak_rss * 1024


def _forget_peak() -> None:
    """Start the peak anew, where that is possible (Linux, proc(5): clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _print(report: dict[str, Any]) -> None:
    named = " ".join([report["recipe"], *report["overrides"]])
    print(f"{named}: {report['engine']}, {report['threads']} threads")
    if report["cached"]:
        print(f"  found in the cache; it was built in {format_seconds(report['build_s'])}")
    else:
        print(f"  built: {_stages(report['build_stages_s'])}")
    print(f"  started: {_stages(report['start_stages_s'])}")
    if report["peak_memory_bytes"] is not None:
        weights = format_bytes(report["weight_bytes_read_per_step"])
        peak = format_bytes(report["peak_memory_bytes"])
        print(f"  peak memory {peak}; a decoding step reads {weights} of weights")
    low, high = min(report["bandwidths_bytes_per_s"]), max(report["bandwidths_bytes_per_s"])
    print(f"  memory bandwidth {high / 1e9:.1f} GB/s, measured in this run")
    if low < 0.85 * high:
        remark(f"  it was {low / 1e9:.1f} GB/s at another moment: the machine is busy or throttled")
    if any((batch["bandwidth_fraction"] or 0) > 1 for batch in report["batches"]):
        remark("  decoding reads faster than the memory: the processor's caches hold these weights")
    first = report["batches"][0]
    shape = f"{first['prompt_tokens']} prompt and {first['new_tokens']} new tokens each"
    print(f"  {shape}, in {first['rounds']} round(s); p50 / p90 / p99\n")
    header = ["sequences", "prefill", "decode", "first token", "between tokens", "of bandwidth"]
    print_table(header, [_row(batch) for batch in report["batches"]])


def _stages(seconds: dict[str, float]) -> str:
    return ", ".join(f"{stage} {format_seconds(s)}" for stage, s in seconds.items())


def _row(batch: dict[str, Any]) -> list[str]:
    decode, fraction = batch["decode_tokens_per_s"], batch["bandwidth_fraction"]
    return [
        str(batch["sequences"]),
        f"{batch['prefill_tokens_per_s']:.0f} tokens/s",
        "never all at once" if decode is None else f"{decode:.1f} tokens/s",
        _percentiles(batch["to_first_token_s"]),
        _percentiles(batch["between_tokens_s"]),
        "" if fraction is None else f"{fraction:.0%}",
    ]


def _percentiles(seconds: dict[str, float]) -> str:
    return " / ".join(f"{1e3 * value:.1f}" for value in seconds.values()) + " ms"


# --- several runs -------------------------------------------------------------------------------


def _sweep(choice: RecipeChoice, options: argparse.Namespace) -> int:
    """Each run in a process of its own, so that its peak memory is its own."""
    runs = sweep(choice)
    reports: list[dict[str, Any]] = []
    failed = 0
    for number, overrides in enumerate(runs, 1):
        if not options.quiet:
            remark(f"run {number} of {len(runs)}: {' '.join([choice.name, *overrides])}")
        report = _run_apart(choice, overrides, options)
        if report is None:
            failed += 1
            continue
        reports.append(report)
        if options.json:
            print_json(report)
        else:
            _print(report)
            print(flush=True)
    if options.plot is not None and reports:
        _plot(reports, Path(options.plot))
    if failed:
        remark(f"{failed} of {len(runs)} runs failed")
    return 1 if failed else 0


def _run_apart(
    choice: RecipeChoice, overrides: list[str], options: argparse.Namespace
) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "paddock", "bench", "-cn", choice.name, *overrides, "--json"]
    for folder in choice.config_dirs:
        command += ["--config-dir", str(folder)]
    for name in ("batch_sizes", "prompt_tokens", "new_tokens", "rounds"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    for name in ("rebuild", "quiet", "debug"):
        command += [f"--{name}"] if getattr(options, name) else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    report: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return report


# --- the picture --------------------------------------------------------------------------------


def _plot(reports: list[dict[str, Any]], file: Path) -> None:
    from paddock.commands.bench_plot import draw

    draw(reports, file)
    remark(f"drawn: {file}")
