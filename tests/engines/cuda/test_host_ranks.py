"""Tensor-parallel ranks of the cuda engine on a double of the device; NCCL on a double of CuPy."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paddock.engines import cuda
from paddock.engines.cuda import nccl as nccl_of_ours
from paddock.engines.cuda.nccl import ID_BYTES, NcclRanks, Place
from paddock.engines.protocol import BuildError, Session
from paddock.graph import DType, Mesh
from paddock.graph.ops import Communicator
from paddock.layers import trace
from paddock.models import registry
from paddock.runtime.distributed.in_process import InProcessSession
from tests.engines.cuda.host_device import HostDevice
from tests.engines.exchanging import Weights, expected, graph, step
from tests.models.bound_arrays import BoundArrays
from tests.models.expected_logits import golden
from tests.models.parity_cases import case
from tests.models.play import chunks, decode, play, relative_error


class Opened(InProcessSession):
    """A model's ranks as one session; every rank must come to the same logits."""

    def __init__(self, name: str, tp: int = 1, pp: int = 1) -> None:
        self.devices: dict[int, HostDevice] = {}

        def open_rank(mesh: Mesh, communicator: Communicator) -> Session:
            one = case(name)
            model = registry.read(one.config).build()
            traced = trace(model, dtype=DType.F32, max_context=one.max_context, mesh=mesh)
            device = self.devices[mesh.rank] = HostDevice()
            return cuda.build(traced, {}).open(
                BoundArrays(model, one.checkpoint(), mesh),
                {"block_size": 4},
                communicator,
                device=device,
            )

        super().__init__(Mesh(tp=tp, pp=pp), open_rank, timeout_s=60)

    def run(self, step: Any) -> Any:
        results = self._together([partial(s.run, step) for s in self.sessions])
        last = results[-self.meshes[0].tp :]
        for other in last[1:]:
            np.testing.assert_array_equal(other, last[0])
        assert all(one.size == 0 for one in results[: -len(last)])
        return last[0]


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-biases", "llama-multi-query"])
def test_two_ranks_agree_with_transformers(name: str) -> None:
    session = Opened(name, 2)
    lengths = [len(ids) for ids in case(name).sequences]
    try:
        for steps in (decode(lengths, prompt=7), chunks(lengths, np.random.default_rng(5))):
            found = play(session, case(name).sequences, steps, np.random.default_rng(1))
            assert relative_error(found, golden(name)) < 2e-5
        assert all(device.captures for device in session.devices.values())
    finally:
        session.close()


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (2, 2)])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_stages_agree_with_transformers(name: str, tp: int, pp: int) -> None:
    session = Opened(name, tp, pp)
    lengths = [len(ids) for ids in case(name).sequences]
    try:
        for steps in (decode(lengths, prompt=7), chunks(lengths, np.random.default_rng(5))):
            found = play(session, case(name).sequences, steps, np.random.default_rng(1))
            assert relative_error(found, golden(name)) < 2e-5
    finally:
        session.close()


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_collective(ranks: int) -> None:
    def open_rank(mesh: Mesh, communicator: Communicator) -> Session:
        engine = cuda.build(graph(ranks), {})
        return engine.open(
            Weights(mesh.tp_rank), {"block_size": 4}, communicator, device=HostDevice()
        )

    session = InProcessSession(Mesh(tp=ranks), open_rank, timeout_s=60)
    try:
        session.allocate_cache(1)
        found = session._together([partial(one.run, step()) for one in session.sessions])
    finally:
        session.close()
    for of_rank in found:
        np.testing.assert_allclose(of_rank, expected(ranks, step().token_ids), rtol=1e-4, atol=1e-4)


def test_one_rank_alone_is_refused() -> None:
    with pytest.raises(BuildError, match="of 2 ranks; they open together"):
        cuda.build(graph(2), {}).open(Weights(0), {}, device=HostDevice())


# --- the communicator ---------------------------------------------------------------------------


class Nccl:
    """CuPy's module as far as it is called: what NCCL itself does is shown on GPUs alone."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.calls: list[tuple[Any, ...]] = []

    def get_unique_id(self) -> bytes:
        return bytes(range(ID_BYTES))

    def NcclCommunicator(self, *arguments: Any) -> Any:
        self.made.append(arguments)
        return SimpleNamespace(
            allReduce=lambda *a: self.calls.append(("allReduce", *a)),
            allGather=lambda *a: self.calls.append(("allGather", *a)),
            reduceScatter=lambda *a: self.calls.append(("reduceScatter", *a)),
            broadcast=lambda *a: self.calls.append(("broadcast", *a)),
            send=lambda *a: self.calls.append(("send", *a)),
            recv=lambda *a: self.calls.append(("recv", *a)),
            destroy=lambda: self.calls.append(("destroy",)),
        )


def test_all_ranks_have_the_first_ones_id_and_their_own_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules: dict[int, Nccl] = {}
    here = threading.local()
    monkeypatch.setattr(nccl_of_ours, "import_module", lambda _: here.nccl)

    def join(mesh: Mesh, communicator: Communicator) -> Any:
        nccl = modules[mesh.tp_rank] = Nccl()
        if mesh.tp_rank:
            nccl.get_unique_id = lambda: bytes(ID_BYTES)  # type: ignore[method-assign]
        here.nccl = nccl
        ranks = NcclRanks(SimpleNamespace(ptr=5), Place(shares=True, ranks=3), communicator)
        x = SimpleNamespace(data=SimpleNamespace(ptr=1), size=12, dtype=DType.BF16.numpy)
        y = SimpleNamespace(data=SimpleNamespace(ptr=2), size=4, dtype=DType.BF16.numpy)
        ranks.all_reduce(x, x)
        ranks.reduce_scatter(x, y)
        ranks.all_gather(y, x)
        ranks.broadcast(x, x)
        return SimpleNamespace(vocab_size=1, block_size=1, block_bytes=0, state_bytes=0)

    InProcessSession(Mesh(tp=3), join, timeout_s=30)._threads.shutdown()
    for rank, nccl in modules.items():
        assert nccl.made == [(3, bytes(range(ID_BYTES)), rank)]
        assert nccl.calls == [
            ("allReduce", 1, 1, 12, 9, 0, 5),
            ("reduceScatter", 1, 2, 4, 9, 0, 5),
            ("allGather", 2, 1, 4, 9, 5),
            ("broadcast", 1, 1, 12, 9, 0, 5),
        ]


def test_stages_that_follow_each_other_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[int, Nccl] = {}
    here = threading.local()
    monkeypatch.setattr(nccl_of_ours, "import_module", lambda _: here.nccl)

    def join(mesh: Mesh, communicator: Communicator) -> Any:
        stage = mesh.pp_rank
        nccl = here.nccl = modules[stage] = Nccl()
        nccl.get_unique_id = lambda: bytes([stage] * ID_BYTES)  # type: ignore[method-assign]
        place = Place(receives=stage > 0, sends=stage < 2)
        ranks = NcclRanks(SimpleNamespace(ptr=5), place, communicator)
        x = SimpleNamespace(data=SimpleNamespace(ptr=1), size=12, dtype=DType.F32.numpy)
        if place.receives:
            ranks.receive(x)
        if place.sends:
            ranks.send(x)
        return SimpleNamespace(vocab_size=1, block_size=1, block_bytes=0, state_bytes=0)

    InProcessSession(Mesh(pp=3), join, timeout_s=30)._threads.shutdown()
    first, second = (2, bytes([0] * ID_BYTES)), (2, bytes([1] * ID_BYTES))
    assert modules[0].made == [(*first, 0)]
    assert modules[1].made == [(*first, 1), (*second, 0)]
    assert modules[2].made == [(*second, 1)]
    assert modules[0].calls == [("send", 1, 12, 7, 1, 5)]
    assert modules[1].calls == [("recv", 1, 12, 7, 0, 5), ("send", 1, 12, 7, 1, 5)]


def test_no_nccl_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(nccl_of_ours, "import_module", missing)
    with pytest.raises(BuildError, match=r"need NCCL, which CuPy does not load \(no cupy_backends"):
        NcclRanks(None, Place(shares=True), None)  # type: ignore[arg-type]
