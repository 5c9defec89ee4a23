"""Several ranks on GPUs: threads that share one, and processes with one each. Needs GPUs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock import LLM, SamplingParams
from paddock.engines import cuda
from paddock.engines.protocol import Session
from paddock.graph import DType, Mesh
from paddock.graph.ops import Communicator
from paddock.layers import trace
from paddock.models import registry
from paddock.runtime.distributed.front import ChoosingRemoteSession
from paddock.runtime.distributed.in_process import InProcessSession
from tests.engines.exchanging import Weights, expected, graph, step
from tests.models.bound_arrays import BoundArrays
from tests.models.expected_logits import golden
from tests.models.parity_cases import case
from tests.models.play import chunks, decode, play, relative_error

pytestmark = pytest.mark.gpu
PROMPTS = ["The ls command", "A Debian package is", "To copy a file, use"]


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_threads_that_share_a_gpu(name: str, tp: int, pp: int) -> None:
    one = case(name)

    def open_rank(mesh: Mesh, communicator: Communicator) -> Session:
        model = registry.read(one.config).build()
        traced = trace(model, dtype=DType.F32, max_context=one.max_context, mesh=mesh)
        weights = BoundArrays(model, one.checkpoint(), mesh)
        return cuda.build(traced, {}).open(weights, {"block_size": 16}, communicator)

    session = InProcessSession(Mesh(tp=tp, pp=pp), open_rank, timeout_s=60)
    lengths = [len(ids) for ids in one.sequences]
    try:
        for steps in (decode(lengths, prompt=7), chunks(lengths, np.random.default_rng(5))):
            found = play(session, one.sequences, steps, np.random.default_rng(1))
            assert relative_error(found, golden(name)) < 1e-4
    finally:
        session.close()


def test_every_collective_through_the_host() -> None:
    def open_rank(mesh: Mesh, communicator: Communicator) -> Session:
        options = {"block_size": 16}
        return cuda.build(graph(2), {}).open(Weights(mesh.tp_rank), options, communicator)

    session = InProcessSession(Mesh(tp=2), open_rank, timeout_s=60)
    try:
        session.allocate_cache(1)
        found = session._together([partial(one.run, step()) for one in session.sessions])
    finally:
        session.close()
    for of_rank in found:
        wanted = expected(2, step().token_ids)
        np.testing.assert_allclose(of_rank, wanted, rtol=1e-3, atol=1e-3)


@pytest.fixture
def two_gpus() -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU: ranks need one each")


def texts(*overrides: str) -> tuple[list[tuple[int, ...]], Any]:
    params = [
        SamplingParams(max_tokens=24, temperature=0),
        SamplingParams(max_tokens=24, temperature=0, logprobs=1),
    ]
    with LLM("demo", *overrides) as llm:
        handles = [llm.submit(prompt, one) for prompt in PROMPTS for one in params]
        kind = type(llm.running.session)
        return [h.result().sequences[0].token_ids for h in handles], kind


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("mesh", ["mesh.tp=2", "mesh.pp=2"])
def test_a_recipe_on_two_gpus(mesh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path))
    pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")
    wanted, _ = texts("engine=cuda", "dtype=f32")
    found, kind = texts("engine=cuda", "dtype=f32", mesh)
    assert found == wanted
    assert (kind is ChoosingRemoteSession) == (mesh == "mesh.tp=2")
