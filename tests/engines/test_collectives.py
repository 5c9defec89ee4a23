"""Sums that are scattered, joins and broadcasts: in threads, in MPI processes, in TensorRT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.engines import openvino, reference
from paddock.engines.protocol import Session
from paddock.graph import Mesh
from paddock.graph.ops import Communicator
from paddock.runtime.distributed.in_process import InProcessSession
from tests.engines.exchanging import Weights, expected, graph, step

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("engine", [reference, openvino], ids=["reference", "openvino"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_threads_as_ranks(engine: Any, ranks: int) -> None:
    options = {"block_size": 4, "threads": 1}

    def open_rank(mesh: Mesh, communicator: Communicator) -> Session:
        session: Session = engine.build(graph(ranks), options).open(
            Weights(mesh.tp_rank), options, communicator
        )
        return session

    session = InProcessSession(Mesh(tp=ranks), open_rank, timeout_s=60)
    try:
        session.allocate_cache(1)
        found = session._together([partial(one.run, step()) for one in session.sessions])
    finally:
        session.close()
    for of_rank in found:
        np.testing.assert_allclose(of_rank, expected(ranks, step().token_ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_as_ranks(ranks: int) -> None:
    pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")
    launcher = Path(sys.executable).parent / "mpirun"
    done = subprocess.run(
        [str(launcher), "-n", str(ranks), sys.executable, "-m", "tests.engines.mpi_exchanging"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line) for line in filter(None, done.stdout.splitlines())]
    assert len(told) == ranks
    for of_rank in told:
        assert of_rank["reference"] < 1e-5
        assert of_rank["openvino"] < 1e-5
        assert of_rank["bf16"] <= 1
        assert of_rank["broadcast"] == 0
