"""Tables from what `peers.py` measured: `python benchmarks/report.py RESULT.json ...`.

Several files are joined: a precision is taken from the last file that has it.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

OURS = "paddock"
DISTURBED = 0.10  # share of the CPUs in others' hands that spoils a sample
CAPACITY_TOKENS = 2048  # as in adapters/worker.py, which cannot be imported without its engine
CACHE_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.125}
STORED_BYTES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5625, "int4-g128": 0.515625}
EMBEDDING_BYTES = {"f32": 4.0}  # a table in bf16 otherwise
Row = list[str]


def spread(values: list[float], digits: int = 1) -> str:
    """Median and, where there is more than one value, what it lies between."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def clean(sample: dict[str, float]) -> bool:
    """Whether others left the CPUs to the engine while the sample was taken."""
    return sample["others"] < DISTURBED


def values_of(samples: list[dict[str, float]]) -> list[float]:
    """The undisturbed samples; all of them where none is."""
    return [s["value"] for s in samples if clean(s)] or [s["value"] for s in samples]


def best_peer(figure: dict[str, list[dict[str, float]]]) -> str | None:
    """The fastest engine that is not ours, by its median."""
    peers = {name: statistics.median(values_of(s)) for name, s in figure.items() if name != OURS}
    return max(peers, key=lambda name: peers[name]) if peers else None


def ratios(figure: dict[str, list[dict[str, float]]]) -> list[float]:
    """Ours over the best peer's, round by round: both in the same minute.

    Rounds in which either was disturbed are left out; where that is all, the medians' ratio.
    """
    best = best_peer(figure)
    if best is None or OURS not in figure:
        return []
    rounds = list(zip(figure[OURS], figure[best], strict=True))
    paired = [a["value"] / b["value"] for a, b in rounds if clean(a) and clean(b)]
    medians = [statistics.median(values_of(figure[name])) for name in (OURS, best)]
    return paired or [medians[0] / medians[1]]


def nominal_bytes(results: dict[str, Any], precision: str, cache: str) -> float:
    """All weights at their precision, and a cache of the capacity that every engine was given."""
    model = results["model"]
    embedding = model["embedding_values"]
    weights = (model["values"] - embedding) * STORED_BYTES[precision]
    weights += embedding * EMBEDDING_BYTES.get(precision, 2.0)
    kind = cache.split()[0]
    return weights + CAPACITY_TOKENS * model["cache_values_per_token"] * CACHE_BYTES[kind]


def figure_rows(part: dict[str, Any], names: list[str]) -> list[Row]:
    rows = []
    for figure, samples in part["figures"].items():
        row = [f"{figure}, tok/s"]
        row += [spread(values_of(samples[name])) if name in samples else "n/a" for name in names]
        compared = ratios(samples)
        row.append(f"{spread(compared, 2)} of {best_peer(samples)}" if compared else "-")
        rows.append(row)
    limit = statistics.median(part["bandwidth_gb_s"]) * 1e9 / part["weight_bytes_per_token"]
    row = ["decode@128 / limit"]
    for name in names:
        decode = part["figures"]["decode@128"].get(name)
        row.append(f"{statistics.median(values_of(decode)) / limit:.2f}" if decode else "n/a")
    return [*rows, [*row, "-"]]


def memory_rows(results: dict[str, Any], precision: str, names: list[str]) -> list[Row]:
    engines = results["precisions"][precision]["engines"]

    def row(title: str, cell: Any) -> Row:
        cells = [cell(engines[name]) if "load_s" in engines[name] else "n/a" for name in names]
        return [title, *cells, "-"]

    def peak_share(engine: dict[str, Any]) -> str:
        nominal = nominal_bytes(results, precision, engine["settings"]["KV cache"])
        peak = engine["memory_end"]["VmHWM"] - engine["memory_before"]["VmRSS"]
        return f"{peak * 1e6 / nominal:.2f}"

    loads = row("opening, s", lambda engine: spread(engine["load_s"], 2))
    opened = {
        name: statistics.median(engines[name]["load_s"])
        for name in names
        if "load_s" in engines[name]
    }
    if OURS in opened and len(opened) > 1:
        fastest = min((name for name in opened if name != OURS), key=lambda name: opened[name])
        loads[-1] = f"{opened[OURS] / opened[fastest]:.2f} of {fastest}"
    return [
        loads,
        row("peak memory, MB", lambda engine: f"{engine['memory_end']['VmHWM']:.0f}"),
        row("  of it, before opening", lambda engine: f"{engine['memory_before']['VmRSS']:.0f}"),
        row("  (peak - before) / (weights + KV)", peak_share),
        row("anonymous, opened, MB", lambda engine: f"{engine['memory_loaded']['RssAnon']:.0f}"),
        row(
            "anonymous, first tokens, MB",
            lambda engine: f"{engine['memory_first']['RssAnon']:.0f}",
        ),
        row("anonymous, at the end, MB", lambda engine: f"{engine['memory_end']['RssAnon']:.0f}"),
    ]


def check_row(engines: dict[str, Any], names: list[str]) -> Row:
    row = ["greedy tokens as f32 / corr. of logits"]
    for name in names:
        check = engines[name].get("check", {})
        if "equal_tokens" not in check:
            row.append("n/a")
            continue
        correlation = f"{check['correlation']:.4f}" if "correlation" in check else "hidden"
        row.append(f"{check['equal_tokens']}/{check['of']} / {correlation}")
    return [*row, "-"]


def disturbed(part: dict[str, Any]) -> tuple[int, int]:
    """How many samples others disturbed, of how many."""
    samples = [
        sample
        for figure in part["figures"].values()
        for taken in figure.values()
        for sample in taken
    ]
    return sum(not clean(sample) for sample in samples), len(samples)


def table(results: dict[str, Any], precision: str) -> tuple[list[str], list[Row]]:
    part = results["precisions"][precision]
    names = list(part["engines"])
    rows = figure_rows(part, names) + memory_rows(results, precision, names)
    rows.append(check_row(part["engines"], names))
    return [precision, *names, "ratio"], rows


def notes(results: dict[str, Any], precision: str) -> list[str]:
    part = results["precisions"][precision]
    bandwidth = spread(part["bandwidth_gb_s"])
    limit = statistics.median(part["bandwidth_gb_s"]) * 1e9 / part["weight_bytes_per_token"]
    spoiled, taken = disturbed(part)
    lines = [
        f"memory bandwidth {bandwidth} GB/s: decoding one sequence is bound by {limit:.1f} tok/s",
        f"{spoiled} of {taken} samples are left out: other work used {DISTURBED:.0%} of the CPUs "
        "or more meanwhile",
    ]
    for name, engine in part["engines"].items():
        if "unsupported" in engine:
            lines.append(f"{name}: n/a, {engine['unsupported']}")
        else:
            settings = "; ".join(
                f"{key} {value}"
                for key, value in engine["settings"].items()
                if key != "compiled for"
            )
            lines.append(f"{name} {engine['version']}: {settings}")
    return lines


def heading(results: dict[str, Any]) -> list[str]:
    machine = results["machine"]
    return [
        f"{results['date']}, {machine['cpu']} (family, model, stepping "
        f"{machine['family, model, stepping']}; {', '.join(machine['extensions'])}), "
        f"{machine['cpus']} CPUs{' of a virtual machine' if machine['virtual'] else ''}, "
        f"{machine['memory_gb']} GB, {results['threads']} threads",
        f"`{results['command']}`",
    ]


def as_text(results: dict[str, Any]) -> str:
    blocks = ["\n".join(heading(results))]
    for precision in results["precisions"]:
        header, rows = table(results, precision)
        widths = [max(len(row[at]) for row in [header, *rows]) for at in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [header, *rows]
        ]
        blocks.append("\n".join([*lines, *(f"  {note}" for note in notes(results, precision))]))
    return "\n\n".join(blocks)


def as_markdown(results: dict[str, Any]) -> str:
    blocks = ["\n".join(f"{line}  " for line in heading(results))]
    for precision in results["precisions"]:
        header, rows = table(results, precision)
        lines = [
            f"| {' | '.join(row)} |"
            for row in [header, ["---"] * len(header), *[[c.strip() for c in row] for row in rows]]
        ]
        listed = [f"- {note}" for note in notes(results, precision)]
        blocks.append("\n".join([f"### {precision}", "", *lines, "", *listed]))
    return "\n\n".join(blocks) + "\n"


def join(paths: list[Path]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for path in paths:
        results = json.loads(path.read_text())
        precisions = {**joined.get("precisions", {}), **results["precisions"]}
        joined = {**results, "precisions": precisions}
    return joined


if __name__ == "__main__":
    print(as_markdown(join([Path(name) for name in sys.argv[1:]])), end="")
