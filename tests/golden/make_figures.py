"""Measure how far models that write text are from transformers: `figures.json`.

`python -m tests.golden.make_figures [CLASS ...]`: those that are named anew, without a name all.
Needs torch and transformers. Of each class the largest difference of a logit over its drawn
configurations, relative to the largest logit: in f32 on `reference` and `openvino`, and with
weights in int8 on `openvino`. The pages that show them are written by
`tests.golden.make_architectures`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from paddock.engines.protocol import Session, WeightSource
from paddock.graph import Array, DType, Mesh, QuantFormat
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.models import encoder_decoder_steps as of_two
from tests.models.bound_arrays import BoundArrays
from tests.models.bound_folder import bound
from tests.models.decoder_draws import LENGTHS
from tests.models.drawn_families import FAMILIES
from tests.models.encoder_decoder_cases import CONTEXT, EncoderDecoderCase
from tests.models.encoder_decoder_cases import NAMES as OF_TWO
from tests.models.expected_logits import expected
from tests.models.opened import ENGINES, OPTIONS, engine_kind
from tests.models.parity_cases import CASES, Case, Config, case
from tests.models.play import chunks, decode, play, relative_error
from tests.models.remote_code_draws import REMOTE
from tests.models.vision_cases import CONTEXT as VISION_CONTEXT
from tests.models.vision_cases import NAMES as VISION
from tests.models.vision_cases import VisionCase

if TYPE_CHECKING:
    from tests.models.published import Published

FILE = Path(__file__).with_name("figures.json")
INT8 = QuantFormat(DType.I8)


@dataclass(frozen=True)
class Tried:
    """A checkpoint's configuration, and how a session on it is held against transformers."""

    config: Config
    context: int
    error: Callable[[Session], float]
    folder: Path | None = None  # None: arrays that `parity_cases` makes
    arrays: Mapping[str, Array] | None = None

    def on(self, engine: str, quant: QuantFormat | None = None) -> float:
        """The error of a session on that engine."""
        architecture = registry.read(self.config)
        model = architecture.build()
        model.assign_names()
        if quant is not None:
            quantize(model, quant)
        graph = trace(model, max_context=self.context)
        with TemporaryDirectory() as out:
            weights: WeightSource
            if self.folder is not None:
                weights = bound(model, architecture, self.folder, Path(out) / "bound", Mesh())
            else:
                weights = BoundArrays(model, self.arrays or {})
            built = engine_kind(engine).build(graph, OPTIONS[engine])
            session = built.open(weights, OPTIONS[engine])
            try:
                return self.error(session)
            finally:
                session.close()


def drawn(family: str) -> Iterator[Tried]:
    """The draws of a decoder, prompts in chunks and token by token."""
    from tests.models.published import publish, publish_remote

    for number in range(3):
        with TemporaryDirectory() as folder:
            make = publish_remote if family in REMOTE else publish
            made = make(family, number, Path(folder), divisible=number == 2)

            def error(session: Session, made: Published = made, number: int = number) -> float:
                random = np.random.default_rng(number)
                plans = (chunks(LENGTHS, random), decode(LENGTHS, 30))
                found = [play(session, made.sequences, plan, random) for plan in plans]
                return max(relative_error(some, made.logits) for some in found)

            yield Tried(made.config, LENGTHS[0], error, made.folder)


def of_two_parts(family: str) -> Iterator[Tried]:
    """The cases of an encoder-decoder, as decoders'."""
    for name in (n for n in OF_TWO if _is(EncoderDecoderCase(n).config, family)):
        some = EncoderDecoderCase(name)
        folder, _, logits = of_two.made(name)

        def error(
            session: Session, some: EncoderDecoderCase = some, logits: list[Array] = logits
        ) -> float:
            lengths = [len(ids) for ids in some.answers]
            plans = (chunks(lengths, np.random.default_rng(len(some.name))), decode(lengths, 2))
            return max(relative_error(of_two.play(session, some, p), logits) for p in plans)

        yield Tried(some.config, CONTEXT, error, folder)


def seeing(family: str) -> Iterator[Tried]:
    """The cases of a model that sees, images in chunks that cut them, and token by token."""
    from tests.models import test_vision

    for name in (n for n in VISION if _is(VisionCase(n).config, family)):
        some = VisionCase(name)
        folder, _, logits = test_vision.made(name)

        def error(session: Session, some: VisionCase = some, logits: list[Array] = logits) -> float:
            lengths = [len(prompt.token_ids) for prompt in some.prompts]
            plans = (chunks(lengths, np.random.default_rng(len(some.name))), decode(lengths, 2))
            found = [test_vision.play(session, some, plan) for plan in plans]
            return max(relative_error(logits_of, logits) for logits_of in found)

        yield Tried(some.config, VISION_CONTEXT, error, folder)


def by_hand(family: str) -> Iterator[Tried]:
    """The configurations that `parity_cases` writes down."""
    for some in (case(n) for n in CASES if _is(CASES[n], family)):

        def error(session: Session, some: Case = some) -> float:
            random = np.random.default_rng(0)
            plan = chunks([len(ids) for ids in some.sequences], random)
            found = play(session, some.sequences, plan, random)
            return relative_error(found, expected(some.name))

        yield Tried(some.config, some.max_context, error, arrays=some.checkpoint())


def _is(config: Config, family: str) -> bool:
    return bool(config["architectures"] == [family])


SOURCES: dict[str, Callable[[str], Iterator[Tried]]] = {
    **{config["architectures"][0]: by_hand for config in CASES.values()},
    **{EncoderDecoderCase(name).config["architectures"][0]: of_two_parts for name in OF_TWO},
    **{VisionCase(name).config["architectures"][0]: seeing for name in VISION},
    **dict.fromkeys((*FAMILIES, *REMOTE), drawn),
}


def measured(family: str) -> dict[str, float]:
    """By engine, and for int8, the largest error of all."""
    worst = dict.fromkeys((*ENGINES, "int8"), 0.0)
    for tried in SOURCES[family](family):
        for engine in ENGINES:
            worst[engine] = max(worst[engine], tried.on(engine))
        worst["int8"] = max(worst["int8"], tried.on("openvino", INT8))
    return {what: float(f"{error:.1e}") for what, error in worst.items()}


def main(named: Sequence[str]) -> None:
    """Measure, and write after each class."""
    found: dict[str, dict[str, float]] = json.loads(FILE.read_text("utf-8"))
    for family in named or SOURCES:
        found[family] = measured(family)
        print(family, found[family], flush=True)
        FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
