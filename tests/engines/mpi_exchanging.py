"""One MPI rank of `test_collectives.py`; prints how far it is off, by engine."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np

from paddock.engines import openvino, reference
from paddock.graph import Mesh
from paddock.runtime.distributed.mpi import MpiCommunicator, World
from tests.engines.exchanging import Weights, expected, graph, step

if __name__ == "__main__":
    world = World.join()
    communicator = MpiCommunicator(world.comm, Mesh(tp=world.size, tp_rank=world.rank))
    told: dict[str, float] = {}
    for name, engine in (("reference", reference), ("openvino", openvino)):
        options = {"block_size": 4, "threads": 1}
        session = engine.build(graph(world.size), options).open(
            Weights(world.rank), options, communicator
        )
        session.allocate_cache(1)
        wanted = expected(world.size, step().token_ids)
        told[name] = float(np.abs(session.run(step()) - wanted).max() / np.abs(wanted).max())
        session.close()
    # Sums of bf16 are rounded once: 256 + 1 + 1 is 258, and by single steps 256.
    few = np.full((2, world.size), 256 if world.rank == 0 else 1, ml_dtypes.bfloat16)
    part = communicator.reduce_scatter(few)
    assert part.shape == (2, 1)
    assert part.dtype == few.dtype
    told["bf16"] = float(np.abs(part.astype(np.float32) - 255 - world.size).max())
    first = communicator.broadcast(few)
    told["broadcast"] = float(np.abs(first.astype(np.float32) - 256).max())
    print(f"\n{json.dumps(told)}", flush=True)
    world.leave()
