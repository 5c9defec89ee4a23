"""Write docs/architectures.md: what the registry holds, read from the classes themselves.

`python -m tests.golden.make_architectures`; `tests/models/test_architectures.py` holds the page
against what this makes.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from paddock.models import registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architectures.md"
MEASURED = Path(__file__).with_name("encoder_errors.json")
ASKED = {"generate": "text", "embed": "vectors", "classify": "labels"}
NOT_THERE = (
    "Qwen2-VL, Gemma 3 with images, SmolVLM, LLaVA-NeXT and its relatives, Pixtral",
    "DeBERTa, GTE and Jina BERT",
)
HEAD = [
    "What `architectures` in config.json may say. Written from the registry by",
    "`python -m tests.golden.make_architectures`; a test holds the page to it.",
    "",
    "The last column is the largest difference from transformers on a drawn tiny configuration,",
    "relative to the largest value, in f32: of the `reference` engine, and of `openvino`. Each is",
    "tested on three, masked language models (an encoder and an unread head) on one; those for",
    "pre-training have no figure. Decoders' figures are in [decoders.md](decoders.md).",
]


def page() -> str:
    """The whole page, from the registry and what was measured."""
    measured: dict[str, dict[str, float]] = json.loads(MEASURED.read_text("utf-8"))
    rows = []
    for name, module in sorted(registry.ARCHITECTURES.items()):
        model: Any = getattr(importlib.import_module(module), name)
        task = ASKED[getattr(model, "task", "generate")]
        file = f"models/{module.rpartition('.')[2]}.py"
        what = (inspect.getdoc(importlib.import_module(module)) or "").split("\n")[0].rstrip(".")
        errors = measured.get(name)
        shown = f"{errors['reference']:.0e}, {errors['openvino']:.0e}" if errors else ""
        rows.append(
            f"| `{name}` | {task} | [{file}](../{file}) | {what.partition(':')[0]} | {shown} |"
        )
    lines = [
        "# Architectures",
        "",
        *HEAD,
        "",
        f"{len(rows)} classes. Any class of text can be pooled into vectors (`task=embed`).",
        "",
        "| class | gives | file | what it is | measured |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Not there: " + "; ".join(NOT_THERE) + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
