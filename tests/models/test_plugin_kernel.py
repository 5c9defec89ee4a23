"""docs/plugins.md followed: a fused op with CUDA source, in a model of the zoo, on every engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.engines import cuda
from paddock.engines.cuda.lowering import emit
from paddock.graph import DType
from paddock.layers import trace
from paddock.models import registry
from tests.models.bound_arrays import BoundArrays
from tests.models.expected_logits import expected
from tests.models.opened import ENGINES, OPTIONS, TOLERANCE, engine_kind
from tests.models.parity_cases import case
from tests.models.play import play, relative_error, together

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's module, whose Llama is in the place of the zoo's until the test is over."""
    from paddock.graph.op import OPS

    ops = dict(OPS)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
    monkeypatch.delitem(sys.modules, "fused_llama", raising=False)
    import fused_llama  # type: ignore[import-not-found]

    yield fused_llama
    OPS.clear()
    OPS.update(ops)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_fused_llama_is_llama(example: Any, engine: str) -> None:
    some = case("llama")
    model = registry.read(some.config).build()
    graph = trace(model, max_context=some.max_context)
    assert len(list(graph.find(example.AddRMSNorm))) == 3
    kind = engine_kind(engine)
    session = kind.build(graph, {}).open(BoundArrays(model, some.checkpoint()), OPTIONS[engine])
    lengths = [len(ids) for ids in some.sequences]
    found = play(session, some.sequences, together(lengths), np.random.default_rng(0))
    session.close()
    assert relative_error(found, expected("llama")) < TOLERANCE[engine]


def test_the_cuda_engine_keeps_the_op_and_launches_its_kernel(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With arrays that have an address; what a GPU computes, tests marked `gpu` look at."""
    from math import prod
    from types import SimpleNamespace

    from paddock.engines import cuda_plugin
    from paddock.engines.cuda.device import Instruction

    some = case("llama")
    graph = trace(registry.read(some.config).build(), dtype=DType.F16, max_context=some.max_context)
    nodes = list(cuda.build(graph, {}).graph.find(example.AddRMSNorm))
    assert len(nodes) == 3
    launched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cuda_plugin, "launch", lambda *given: launched.append(given))

    def array(address: int, *shape: int) -> Any:
        return SimpleNamespace(shape=shape, size=prod(shape), data=SimpleNamespace(ptr=address))

    gpu: Any = SimpleNamespace(stream=SimpleNamespace(ptr=7))
    inputs = [array(256, 5, 64), array(512, 5, 64), array(768, 64)]
    types = tuple(t.type for t in nodes[0].inputs)
    outputs = [array(1024, 5, 64), array(1280, 5, 64)]
    emit(gpu, Instruction(nodes[0].op, types, inputs, outputs))
    ((op, operands, addresses, stream),) = launched
    assert op == nodes[0].op
    assert [str(t) for t in operands] == ["f16[5, 64]", "f16[5, 64]", "f16[64]"]
    assert addresses == [256, 512, 768, 1024, 1280]
    assert stream == 7
    how = op.cuda_source.launch(op, *operands)
    assert (how.grid, how.scalars) == ((5,), (64, np.float32(op.eps)))
