"""Write what the registry holds, and what was measured of it: docs/architectures.md, and the tables
of docs/decoders.md and of the README.

`python -m tests.golden.make_architectures`; `tests/models/test_architectures.py` holds all three
against what this makes.
"""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from paddock.engines.cuda.lowering import lowers as cuda_lowers
from paddock.engines.tensorrt.lowering import lowers as tensorrt_lowers
from paddock.layers import trace
from paddock.models import registry
from tests.models.decoder_configs import DECODER_CONFIGS
from tests.models.decoder_draws import Config, Draw
from tests.models.drawn_families import FAMILIES
from tests.models.encoder_cases import NAMES as ENCODERS
from tests.models.encoder_cases import EncoderCase
from tests.models.encoder_decoder_cases import NAMES as OF_TWO
from tests.models.encoder_decoder_cases import EncoderDecoderCase
from tests.models.expert_configs import EXPERT_CONFIGS
from tests.models.opened import ENGINES
from tests.models.parity_cases import CASES
from tests.models.remote_code_draws import REMOTE
from tests.models.test_vision_names import PUBLISHED as SEEING
from tests.models.vision_cases import NAMES as VISION
from tests.models.vision_cases import VisionCase

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architectures.md"
README = ROOT / "README.md"
DECODERS = ROOT / "docs" / "decoders.md"
ENCODER_ERRORS = Path(__file__).with_name("encoder_errors.json")
FIGURES = Path(__file__).with_name("figures.json")
INDICES = Path(__file__).with_name("published_indices.json")
LOWERS = {"tensorrt": tensorrt_lowers, "cuda": cuda_lowers}
GIVES = {"generate": "text", "embed": "vectors", "classify": "labels"}
NOT_THERE = (
    "LLaVA-NeXT and its relatives, Pixtral, videos",
    "DeBERTa, GTE and Jina BERT",
)
HEAD = """\
What `architectures` in config.json may say. Written from the registry by
`python -m tests.golden.make_architectures`; a test holds the page to it.

**f32** is the largest difference from transformers on drawn tiny configurations, relative to the
largest value: of the engine `reference`, and of `openvino`. Of decoders, encoder-decoders
and models that see it is the worst of three (`python -m tests.golden.make_figures`; see
[decoders.md](decoders.md)), of encoders that of one; masked language models are an encoder and an
unread head, those for pre-training have no figure. **int8** is the same with weights in int8 on
`openvino`: drawn weights are far larger than trained ones, so it shows that the format runs, not
how good it is."""
TABLE_HEAD = """\
Written by `python -m tests.golden.make_architectures`. *Bound at* are checkpoints at whose full
size every slot finds its tensor and every tensor its slot. *Parity* is the largest difference
from transformers on random tiny configurations in f32, relative to the largest value, on
`reference` and `openvino` ([each class](docs/architectures.md)). *Ranks*: which divisions give
transformers' results in the tests. *GPU*: the engines that have every op of it (`openvino` and
`reference` run all). int8 and int4 apply to every family's linear layers."""


@dataclass(frozen=True)
class Family:
    """The classes of one file."""

    module: str
    classes: tuple[str, ...]

    @property
    def file(self) -> str:
        return f"models/{self.module.rpartition('.')[2]}.py"

    @property
    def summary(self) -> str:
        """What the file's first words say it is."""
        text = inspect.getdoc(importlib.import_module(self.module)) or ""
        return " ".join(text.split("\n\n")[0].split()).removesuffix(".")

    @property
    def title(self) -> str:
        """The family's name alone."""
        return self.summary.partition(":")[0]

    @property
    def errors(self) -> list[dict[str, float]]:
        return [measured()[name] for name in self.classes if name in measured()]

    @property
    def config(self) -> Config | None:
        """Of a tiny model that tests compare with transformers."""
        return next((tried()[name][0] for name in self.classes if name in tried()), None)

    @property
    def ranks(self) -> str:
        return next((tried()[name][1] for name in self.classes if name in tried()), "")

    @property
    def real(self) -> list[str]:
        """Published checkpoints whose names are proved total, without their owners."""
        indices = json.loads(INDICES.read_text("utf-8"))
        configs = DECODER_CONFIGS | EXPERT_CONFIGS
        configs |= {repo: config for repo, (config, _) in SEEING.items()}
        configs |= {repo: index["config"] for repo, index in indices.items()}
        return [
            repo.rpartition("/")[2]
            for repo, config in configs.items()
            if config["architectures"][0] in self.classes
        ]


def families() -> list[Family]:
    """In the order of their titles, those that write texts first."""
    files: dict[str, list[str]] = {}
    for name, module in registry.ARCHITECTURES.items():
        files.setdefault(module, []).append(name)
    found = [Family(module, tuple(sorted(names))) for module, names in files.items()]
    return sorted(found, key=lambda f: f.title.lower())


@cache
def measured() -> dict[str, dict[str, float]]:
    """Errors by class, and by engine or format."""
    found: dict[str, dict[str, float]] = json.loads(FIGURES.read_text("utf-8"))
    encoders: dict[str, dict[str, float]] = json.loads(ENCODER_ERRORS.read_text("utf-8"))
    return encoders | found


@cache
def tried() -> dict[str, tuple[Config, str]]:
    """Of each class that is compared with transformers a config, and over which ranks it is."""
    found: dict[str, tuple[Config, str]] = {}
    for config in CASES.values():
        found.setdefault(config["architectures"][0], (config, "tp, pp"))
    for family, draw in FAMILIES.items():
        found[family] = draw(Draw(family, 2, divisible=True)), "tp, pp"
    for family, remote in REMOTE.items():
        fields = remote.draw(Draw(family, 2, divisible=True))
        twin = {"architectures": [remote.twin[0]], "model_type": remote.twin[1]}
        found[family] = remote.config(fields | twin) | {"architectures": [family]}, "tp, pp"
    for name in ENCODERS:
        encoder = EncoderCase(name)
        found.setdefault(encoder.architecture, (encoder.config, "tp, pp"))
    for name in OF_TWO:
        config = EncoderDecoderCase(name).config
        found.setdefault(config["architectures"][0], (config, "tp"))
    for name in VISION:
        config = VisionCase(name).config
        found.setdefault(config["architectures"][0], (config, "tp, pp"))
    return found


def engines(config: Config) -> list[str]:
    """Those for GPUs that have every op of the model."""
    graph = trace(registry.read(config).build(), max_context=64)
    return [name for name, lowers in LOWERS.items() if all(lowers(n.op) for n in graph.nodes)]


def decoders() -> str:
    """docs/decoders.md with its table as it is now."""
    rows = [
        "| class | what it is | compared with | reference | openvino |",
        "|---|---|---|---|---|",
    ]
    for name in sorted([*FAMILIES, *REMOTE]):
        family = next(f for f in families() if name in f.classes)
        twin = f"transformers' {REMOTE[name].twin[0]}" if name in REMOTE else "transformers"
        errors = " | ".join(f"{measured()[name][engine]:.1e}" for engine in ENGINES)
        rows.append(f"| [{name}](../{family.file}) | {family.summary} | {twin} | {errors} |")
    return _between(DECODERS, "<!-- measured -->", "<!-- /measured -->", "\n".join(rows))


def _between(page: Path, begin: str, end: str, text: str) -> str:
    """The page with `text` between two marks."""
    before, _, rest = page.read_text("utf-8").partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def shown(error: float) -> str:
    return f"{error:.0e}"


def page() -> str:
    """docs/architectures.md, a row a class."""
    rows = []
    for family in families():
        for name in family.classes:
            model: Any = getattr(importlib.import_module(family.module), name)
            gives = GIVES[getattr(model, "task", "generate")]
            errors = measured().get(name, {})
            f32 = ", ".join(shown(errors[e]) for e in ENGINES if errors)
            int8 = shown(errors["int8"]) if "int8" in errors else ""
            link = f"[{family.file}](../{family.file})"
            rows.append(f"| `{name}` | {gives} | {link} | {family.title} | {f32} | {int8} |")
    lines = [
        *("# Architectures", "", HEAD, ""),
        f"{len(rows)} classes. Any class of text can be pooled into vectors (`task=embed`).",
        "",
        "| class | gives | file | what it is | f32 | int8 |",
        "|---|---|---|---|---|---|",
        *sorted(rows),
        *("", "Not there: " + "; ".join(NOT_THERE) + ".", ""),
    ]
    return "\n".join(lines)


def table() -> str:
    """The README's table, a row a family."""
    rows = []
    for family in families():
        errors, config = family.errors, family.config
        parity = ", ".join(shown(max(e[engine] for e in errors)) for engine in ENGINES if errors)
        cells = (
            f"[{family.title}]({family.file})",
            ", ".join(f"`{name}`" for name in family.classes),
            ", ".join(family.real),
            parity,
            family.ranks,
            ", ".join(engines(config)) if config else "",
        )
        rows.append(f"| {' | '.join(cells)} |")
    count = sum(len(family.classes) for family in families())
    return "\n".join(
        [
            f"{count} classes of {len(rows)} families. {TABLE_HEAD}",
            "",
            "| family | `architectures` | bound at | parity | ranks | GPU |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def readme() -> str:
    """The README with its table as it is now."""
    return _between(README, "<!-- families -->", "<!-- /families -->", table())


def main() -> None:
    """Write all three."""
    PAGE.write_text(page(), "utf-8")
    DECODERS.write_text(decoders(), "utf-8")
    README.write_text(readme(), "utf-8")


if __name__ == "__main__":
    main()
