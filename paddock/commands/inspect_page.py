"""An engine as one page: the module tree with what each computes, sizes drawn, kernels."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from paddock.commands.terminal import format_bytes

if TYPE_CHECKING:
    from paddock.recipes.inspection import Inspection, ModuleReport, RankReport

STYLE = Path(__file__).with_name("inspect_page.css")

# What the pieces of a name that TensorRT gave a kernel come from.
_READS_AS = {
    "MeanAddSqrtDiv": "RMSNorm",
    "SiluMul": "gated MLP's activation and product",
    "MaxrSubExpSumDiv": "softmax",
    "SinCos": "rotary angles",
    "ConcTran": "rotary, turned and written",
    "_mha_": "attention in one kernel",
}


def page(found: Inspection) -> str:
    """HTML with its style inside, and neither scripts nor anything to fetch."""
    return "\n".join(_lines(found))


def _lines(found: Inspection) -> Iterator[str]:
    title = f"{found.recipe}: what is inside"
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{STYLE.read_text('utf-8')}</style></head>"
    yield f"<body><main><h1>{escape(found.recipe)}</h1>"
    yield f'<div class="soft"><code>{escape(found.folder)}</code></div>'
    facts = dict(found.facts)
    if found.check:
        facts["checked against the reference"] = (
            f"{found.check['layers']} layers, logits {found.check['error']:.1e} away"
        )
    yield "<section><dl>"
    for name, value in facts.items():
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
    yield "</dl></section>"
    for number, rank in enumerate(found.ranks):
        of = f" of rank {number}" if len(found.ranks) > 1 else ""
        yield from _rank(rank, of)
    yield "</main></body></html>"


def _rank(rank: RankReport, of: str) -> Iterator[str]:
    yield f"<h2>Memory{of}</h2><section><dl>"
    sizes = {"weights": format_bytes(rank.weight_bytes)}
    if rank.cache_bytes_per_token:
        sizes["cache"] = f"{format_bytes(rank.cache_bytes_per_token)} a token"
    if rank.state_bytes_per_sequence:
        sizes["state"] = f"{format_bytes(rank.state_bytes_per_sequence)} a sequence"
    sizes |= {name: format_bytes(size) for name, size in rank.files.items()}
    for name, value in sizes.items():
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
    yield "</dl></section>"
    yield f"<h2>The model{of}</h2><section>"
    for inner in rank.model.modules:
        yield from _module(inner, max(rank.weight_bytes, 1), depth=0)
    yield "</section>"
    if rank.kernels:
        yield f"<h2>What the compiler made of it{of}</h2><section><table>"
        heads = "".join(f'<th scope="col">{name}</th>' for name in ("kernel", "reads as", "times"))
        yield f"<tr>{heads}</tr>"
        for name, count in rank.kernels.items():
            reads = ", ".join(what for piece, what in _READS_AS.items() if piece in name)
            yield (
                f"<tr><td><code>{escape(name)}</code></td><td>{escape(reads)}</td>"
                f'<td class="n">{count}</td></tr>'
            )
        yield "</table></section>"


def _module(module: ModuleReport, whole: int, depth: int) -> Iterator[str]:
    chips = "".join(
        f'<span class="chip">{escape(op)}{f" &times;{n}" if n > 1 else ""}</span>'
        for op, n in module.ops.items()
    )
    row = (
        f"<span>{escape(module.name)}</span><span>{chips}</span>{_bar(module.weight_bytes, whole)}"
    )
    if not module.modules and not module.weights:
        yield f'<div class="leaf">{row}</div>'
        return
    # The first two floors and the first layer are open: the whole would be too long to look at.
    is_open = depth < 2 or (module.name == "0" and depth == 2)
    yield f"<details{' open' if is_open else ''}><summary>{row}</summary>"
    for weight in module.weights:
        shape = " &times; ".join(map(str, weight.shape))
        own = weight.name.rpartition(".")[2]
        yield (
            f'<div class="leaf"><span class="soft">{escape(own)}</span>'
            f'<span class="soft">{escape(weight.dtype)} {shape}</span>'
            f"{_bar(weight.nbytes, whole)}</div>"
        )
    for inner in module.modules:
        yield from _module(inner, whole, depth + 1)
    yield "</details>"


def _bar(nbytes: int, whole: int) -> str:
    if not nbytes:
        return "<span></span>"
    share = 100 * nbytes / whole
    return (
        f'<span class="draw"><i aria-hidden="true"><b style="width:{share:.2f}%"></b></i>'
        f'<span class="size">{format_bytes(nbytes)}</span></span>'
    )
