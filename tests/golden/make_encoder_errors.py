"""Measure how far encoders are from transformers, for docs/architectures.md.

`python -m tests.golden.make_encoder_errors`; needs torch and transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

from paddock.layers import trace
from paddock.models import registry
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.encoder_cases import NAMES, EncoderCase
from tests.models.encoder_steps import made, run
from tests.models.opened import ENGINES, OPTIONS, engine_kind
from tests.models.play import relative_error

FILE = Path(__file__).with_name("encoder_errors.json")


def measure(name: str) -> dict[str, float]:
    """Of one case, by engine: all its sequences in one step."""
    case = EncoderCase(name)
    folder, expected = made(name)
    architecture = registry.read(case.config)
    found = {}
    for engine in ENGINES:
        model = architecture.build()
        graph = trace(model, max_context=len(case.sequences[0]))
        weights = BoundCheckpoint(architecture, model, folder)
        session = engine_kind(engine).build(graph, OPTIONS[engine]).open(weights, OPTIONS[engine])
        reads = architecture.reads if architecture.task == "classify" else "all"
        try:
            rows = run(session, case, range(len(expected)), reads)
        finally:
            session.close()
        found[engine] = relative_error(rows, expected)
    return found


def main() -> None:
    """Write the errors of the first case of each class."""
    found: dict[str, dict[str, float]] = {}
    for name in NAMES:
        if name.endswith("/1"):
            errors = measure(name)
            found[EncoderCase(name).architecture] = {e: float(f"{errors[e]:.1e}") for e in errors}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
