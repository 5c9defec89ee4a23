"""The pictures of `paddock bench --plot` and `paddock bench serve --plot`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddock.commands.arguments import UsageError

LATENCIES = ("to_first_token_s", "between_tokens_s", "to_last_token_s")
LATENCY_TITLES = (
    "first token, ms (p50; dotted p99)",
    "between tokens, ms",
    "last token, ms",
)

PANELS: tuple[tuple[str, Callable[[dict[str, Any]], float | None]], ...] = (
    ("decode, tokens/s of all sequences", lambda batch: batch["decode_tokens_per_s"]),
    ("prefill, tokens/s", lambda batch: batch["prefill_tokens_per_s"]),
    ("decoding's fraction of the memory bandwidth", lambda batch: batch["bandwidth_fraction"]),
)


def check_plot(file: Path) -> None:
    """What would fail after minutes of measuring fails now."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib, which is not installed: pip install 'paddock[plot]'"
        ) from None
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {file}: expected a name that ends in .png, .svg or .pdf")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--plot {file}: there is no folder {file.absolute().parent}")


def draw(reports: list[dict[str, Any]], file: Path) -> None:
    """Four panels over the number of sequences, one line a run; written whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    *panels, last = figure.subplots(2, 2).flat
    for panel, (title, value) in zip(panels, PANELS, strict=True):
        for report in reports:
            points = [(batch["sequences"], value(batch)) for batch in report["batches"]]
            known = [point for point in points if point[1] is not None]
            x, y = [point[0] for point in known], [point[1] for point in known]
            panel.plot(x, y, marker="o", label=_label(report))
        panel.set(title=title, xlabel="sequences", ylim=(0, None))
        panel.grid(alpha=0.3)
    for report in reports:
        batches = report["batches"]
        x = [b["sequences"] for b in batches]
        middle, low, high = (
            [1e3 * b["between_tokens_s"][p] for b in batches] for p in ("p50", "p50", "p99")
        )
        (line,) = last.plot(x, middle, marker="o", label=_label(report))
        last.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
    last.set(title="between tokens, ms: p50, shaded to p99", xlabel="sequences", ylim=(0, None))
    last.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    bandwidth = max(report["bandwidth_bytes_per_s"] for report in reports)
    figure.suptitle(f"memory bandwidth measured in the same run: {bandwidth / 1e9:.1f} GB/s")
    _save(figure, file)


def draw_serving(reports: list[dict[str, Any]], file: Path) -> None:
    """Latencies over throughput, one line a run; written whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, key, title in zip(panels, LATENCIES, LATENCY_TITLES, strict=True):
        for report in reports:
            points = [p for p in report["points"] if p.get(key)]
            x = [p["tokens_per_s"] for p in points]
            middle, high = ([1e3 * p[key][q] for p in points] for q in ("p50", "p99"))
            (line,) = panel.plot(x, middle, marker="o", label=_label(report))
            panel.plot(x, high, marker=".", linestyle=":", color=line.get_color())
        panel.set(title=title, xlabel="tokens/s", ylim=(0, None), xlim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    written = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        figure.savefig(written, dpi=150)
        os.replace(written, file)
    finally:
        written.unlink(missing_ok=True)


def _label(report: dict[str, Any]) -> str:
    return " ".join([report["recipe"], *report["overrides"]])
