"""Measure every drawn family against transformers: `python -m tests.models.measure_decoders`.

Writes the table of docs/decoders.md: for each class the largest error relative to the largest
logit, over its drawn configurations, in chunks and token by token.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import numpy as np

from paddock.graph import Mesh
from paddock.layers import trace
from paddock.models import registry
from tests.models.bound_folder import bound
from tests.models.decoder_draws import LENGTHS
from tests.models.drawn_families import FAMILIES
from tests.models.opened import OPTIONS, TOLERANCE, engine_kind
from tests.models.play import chunks, decode, play, relative_error
from tests.models.published import publish, publish_remote
from tests.models.remote_code_draws import REMOTE

PAGE = Path(__file__).parents[2] / "docs" / "decoders.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
DRAWS = range(3)


def main() -> None:
    rows = [
        "| class | what it is | compared with | reference | openvino |",
        "|---|---|---|---|---|",
    ]
    for family in sorted([*FAMILIES, *REMOTE]):
        module = importlib.import_module(registry.ARCHITECTURES[family])
        summary = " ".join((module.__doc__ or "").split("\n\n")[0].split()).removesuffix(".")
        twin = f"transformers' {REMOTE[family].twin[0]}" if family in REMOTE else "transformers"
        errors = " | ".join(f"{worst(family, engine):.1e}" for engine in TOLERANCE)
        path = registry.ARCHITECTURES[family].replace("paddock.", "").replace(".", "/")
        rows.append(f"| [{family}](../{path}.py) | {summary} | {twin} | {errors} |")
        print(rows[-1], flush=True)
    text = PAGE.read_text("utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(rows) + f"\n\n{END}{after}", "utf-8")


def worst(family: str, engine: str) -> float:
    """The largest error over the draws and the ways in which tokens come."""
    errors = []
    for number in DRAWS:
        with tempfile.TemporaryDirectory() as folder:
            made = (publish_remote if family in REMOTE else publish)(
                family, number, Path(folder) / "checkpoint", divisible=number == DRAWS[-1]
            )
            architecture = registry.read(made.config)
            model = architecture.build()
            graph = trace(model, max_context=LENGTHS[0])
            weights = bound(model, architecture, made.folder, Path(folder) / "bound", Mesh())
            kind = engine_kind(engine)
            session = kind.build(graph, OPTIONS[engine]).open(weights, OPTIONS[engine])
            random = np.random.default_rng(number)
            for plan in (chunks(LENGTHS, random), decode(LENGTHS, 30)):
                found = play(session, made.sequences, plan, random)
                errors.append(relative_error(found, made.logits))
            session.close()
    return max(errors)


if __name__ == "__main__":
    main()
