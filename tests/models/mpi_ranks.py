"""One rank of `test_mpi_ranks.py`: many architectures and meshes in one start of the ranks."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from paddock.engines import openvino, reference
from paddock.engines.protocol import StepInputs
from paddock.graph import Array, Mesh
from paddock.layers import trace
from paddock.models import registry
from paddock.runtime.distributed.mpi import MpiCommunicator, World
from tests.models.bound_arrays import BoundArrays
from tests.models.expected_logits import golden
from tests.models.mpi_meshes import places
from tests.models.parity_cases import case
from tests.models.play import chunks, play, relative_error

ENGINES = {"reference": reference, "openvino": openvino}


def main(names: list[str]) -> None:
    """Prints {case: {mesh: relative error}} from the rank that has the logits."""
    world = World.join()
    found: dict[str, dict[str, float]] = {}
    for mesh, communicator in places(world):
        for label in names:
            engine, _, name = label.partition(":")
            error = _error(ENGINES[engine], name, mesh, communicator)
            if error is not None:
                found.setdefault(label, {})[f"tp={mesh.tp} pp={mesh.pp}"] = error
    # The last stage's first rank differs from mesh to mesh: each prints what it has.
    print(f"\n{json.dumps(found)}", flush=True)
    world.leave()


def _error(engine: Any, name: str, mesh: Mesh, communicator: MpiCommunicator) -> float | None:
    some = case(name)
    model = registry.read(some.config).build()
    graph = trace(model, max_context=some.max_context, mesh=mesh)
    options = {"block_size": 4, "threads": 1}
    weights = BoundArrays(model, some.checkpoint(), mesh)
    session = engine.build(graph, options).open(weights, options, communicator)
    answers = mesh.is_last and mesh.tp_rank == 0
    if not mesh.is_last:
        session.vocab_size = some.config["vocab_size"]  # the rows that `play` makes room for
        run = session.run

        def run_unanswered(step: StepInputs) -> Array:
            run(step)
            return np.zeros((len(step.logit_rows), session.vocab_size), np.float32)

        session.run = run_unanswered
    random = np.random.default_rng([mesh.tp, mesh.pp])  # all ranks draw the same steps
    try:
        lengths = [len(ids) for ids in some.sequences]
        logits = play(session, some.sequences, chunks(lengths, random), random)
    finally:
        session.close()
    return relative_error(logits, golden(name)) if answers else None


if __name__ == "__main__":
    main(sys.argv[1:])
