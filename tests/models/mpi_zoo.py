"""One rank of `test_mpi_zoo.py`: every architecture on six meshes in one start of the ranks."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddock.engines.protocol import Session, StepInputs
from paddock.graph import Array, Mesh
from paddock.layers import trace
from paddock.models import registry
from paddock.runtime.distributed.mpi import MpiCommunicator, World, load
from tests.models import encoder_decoder_steps, encoder_steps, test_vision
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.encoder_cases import EncoderCase
from tests.models.encoder_decoder_cases import EncoderDecoderCase
from tests.models.mpi_meshes import places
from tests.models.opened import OPTIONS, engine_kind
from tests.models.play import chunks, decode, play, relative_error
from tests.models.vision_cases import VisionCase

ORDER = [3, 0, 2]  # of an encoder's sequences


@dataclass(frozen=True)
class Expected:
    """A checkpoint, and where the file is that says what transformers makes of it."""

    kind: str
    name: str
    config: dict[str, Any]
    checkpoint: str
    arrays: str
    """`logits.0`, ... of each sequence; of a decoder `ids.0`, ... too."""
    max_context: int
    meshes: Sequence[tuple[int, int]]
    engine: str = "reference"

    def read(self, what: str) -> list[Array]:
        with np.load(self.arrays) as file:
            return [file[f"{what}.{i}"] for i in range(sum(k.startswith(what) for k in file))]


def write_list(cases: list[Expected], file: Path) -> None:
    file.write_text(json.dumps([asdict(case) for case in cases]), "utf-8")


def main(folder: Path) -> None:
    """Each rank writes {case: {mesh: [relative error, rows whose largest logit is another's]}}."""
    world = World.join()
    cases = [Expected(**case) for case in json.loads((folder / "cases.json").read_text("utf-8"))]
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for mesh, communicator in places(world):
        for case in cases:
            if (mesh.tp, mesh.pp) in map(tuple, case.meshes):
                difference = _difference(case, mesh, communicator)
                if mesh.is_last and mesh.tp_rank == 0:
                    found.setdefault(case.name, {})[f"tp={mesh.tp} pp={mesh.pp}"] = difference
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found), "utf-8")
    world.leave()


def _difference(case: Expected, mesh: Mesh, communicator: MpiCommunicator) -> tuple[float, int]:
    architecture = registry.read(case.config)
    model = architecture.build()
    graph = trace(model, max_context=case.max_context, mesh=mesh)
    options = OPTIONS[case.engine] | {"threads": 1}
    weights = BoundCheckpoint(architecture, model, Path(case.checkpoint), mesh)
    kind: Any = engine_kind(case.engine)
    expected = case.read("logits")
    session = kind.build(graph, options).open(weights, options, communicator)
    if not mesh.is_last:
        session = _Unanswered(session, expected[0].shape[-1])
    try:
        logits = _run(case, session, architecture.reads)
    finally:
        session.close()
    others = sum(
        int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(logits, expected, strict=True)
    )
    return relative_error(logits, expected), others


def _run(case: Expected, session: Session, reads: str) -> list[Array]:
    if case.kind == "encoder":
        return encoder_steps.run(session, EncoderCase(case.name), ORDER, reads)
    if case.kind == "encoder-decoder":
        some = EncoderDecoderCase(case.name)
        return encoder_decoder_steps.play(session, some, decode([len(a) for a in some.answers], 4))
    if case.kind == "vision":
        seen = VisionCase(case.name)
        return test_vision.play(session, seen, decode(test_vision.lengths(seen), 4))
    sequences = case.read("ids")
    random = np.random.default_rng(len(case.name))  # all ranks draw the same steps
    return play(session, sequences, chunks([len(ids) for ids in sequences], random), random)


class _Unanswered:
    """The session of a stage before the last, whose rows are nobody's."""

    def __init__(self, session: Session, width: int) -> None:
        self._session, self.vocab_size = session, width
        self.block_size = session.block_size
        self.allocate_cache, self.close = session.allocate_cache, session.close

    def run(self, step: StepInputs) -> Array:
        self._session.run(step)
        return np.zeros((len(step.logit_rows), self.vocab_size), np.float32)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        load().COMM_WORLD.Abort(1)  # the others wait for this rank
