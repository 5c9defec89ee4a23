"""Ops that a user defines: called like any other, expanded where an engine lacks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import paddock.graph.ops as F
from paddock.engines import reference
from paddock.engines.protocol import BuildError
from paddock.engines.reference.evaluate import evaluate
from paddock.graph import Array, DType, Graph, GraphError, Op, Tensor, TensorType, use_graph
from paddock.graph.op import OPS
from paddock.graph.passes import expand
from paddock.graph.serialize import from_json, to_json
from paddock.layers import GatedMLP, trace
from paddock.models import registry
from paddock.models.llama import LlamaBlock, LlamaForCausalLM
from tests.graph.written import tensor
from tests.models.bound_arrays import BoundArrays
from tests.models.expected_logits import expected
from tests.models.opened import ENGINES, OPTIONS, TOLERANCE, engine_kind
from tests.models.parity_cases import case
from tests.models.play import play, relative_error, together


@pytest.fixture(autouse=True)
def forget_the_ops_of_this_file() -> Iterator[None]:
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


@dataclass(frozen=True)
class Swish(Op):
    """x * sigmoid(beta * x): a definition, an expansion, and one engine's own form."""

    beta: float = 1.0

    lowerings: ClassVar[Mapping[str, Callable[..., Any]]] = {"quick": lambda op, x: ("swish", x)}

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        return x / (1 + np.exp(-self.beta * x))

    def expand(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return F.mul(x, F.activation(F.scale(x, self.beta), "sigmoid"))


@dataclass(frozen=True)
class Twice(Op):
    """Two outputs, by way of another plugin's op; no definition of its own."""

    def infer(self, x: TensorType) -> tuple[TensorType, TensorType]:
        return x, x

    def expand(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = inputs
        y = Swish(0.5)(x)
        return y, F.scale(y, 2.0)


@dataclass(frozen=True)
class Opaque(Op):
    """Only a definition."""

    lowerings: ClassVar[Mapping[str, Callable[..., Any]]] = {"quick": lambda op, x: x}

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        return x


KNOWN = (F.Input, F.Mul, F.Scale, F.Activation, F.Add)


def lowers(op: Op) -> bool:
    return isinstance(op, KNOWN)


def traced(*make: Callable[[Tensor], Any]) -> Graph:
    graph = Graph()
    with use_graph(graph), graph.scope("model"), graph.scope("act"):
        x = tensor("f32[tokens, 8]")
        outputs = [f(x) for f in make]
        graph.outputs = tuple(t for y in outputs for t in (y if isinstance(y, tuple) else (y,)))
    return graph


def test_a_plugin_is_an_op_like_any_other() -> None:
    graph = traced(Swish(0.7))
    assert graph.dump().splitlines()[1] == (
        "%1 = swish(%0, beta=0.7) : f32[tokens, 8]  # model.act"
    )
    assert to_json(from_json(to_json(graph))) == to_json(graph)
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    (found,) = evaluate(graph, {graph.nodes[0].op: x})  # type: ignore[dict-item]
    np.testing.assert_allclose(found, x / (1 + np.exp(-0.7 * x)), rtol=1e-6)


def test_an_engine_that_lacks_it_gets_its_expansion() -> None:
    graph = expand(traced(Swish(0.7)), "plain", lowers)
    graph.verify()
    assert [n.op.name for n in graph.nodes] == ["input", "scale", "activation", "mul"]
    assert {n.path for n in graph.nodes} == {"model.act"}
    assert {n.source for n in graph.nodes} == {n.source for n in traced(Swish(0.7)).nodes}


def test_an_engine_that_has_it_keeps_it() -> None:
    graph = traced(Swish(0.7))
    assert expand(graph, "quick", lowers) is graph


def test_expansions_are_expanded() -> None:
    graph = traced(Twice())
    expanded = expand(graph, "plain", lowers)
    expanded.verify()
    assert "swish" not in expanded.dump()
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    first, second = evaluate(expanded, {expanded.nodes[0].op: x})  # type: ignore[dict-item]
    np.testing.assert_allclose(first, Swish(0.5).compute(x), rtol=1e-6)
    np.testing.assert_allclose(second, 2 * first)
    # Where the engine has the inner one, only the outer is expanded.
    assert "swish" in expand(graph, "quick", lowers).dump()


def test_the_reference_engine_expands_what_has_no_definition() -> None:
    engine = reference.build(traced(Twice()), {})
    assert [n.op.name for n in engine.graph.nodes] == ["input", "swish", "scale"]


def test_no_way_to_run_it_is_an_error_that_names_the_ways_there_are() -> None:
    message = (
        r"model\.act \(tests/graph/test_plugin_ops\.py:\d+\): the engine plain does not know the op"
        r" opaque, which gives no expansion and no implementation for it \(it has quick,"
        r" reference\); choose another engine, or give the op Opaque an `expand` or a"
        r" `lowerings\['plain'\]`"
    )
    with pytest.raises(GraphError, match=message):
        expand(traced(Opaque()), "plain", lowers)


def test_an_op_with_nothing_at_all_is_refused_by_the_reference_engine() -> None:
    @dataclass(frozen=True)
    class Empty(Op):
        def infer(self, x: TensorType) -> TensorType:
            return x

    with pytest.raises(BuildError, match=r"the engine reference does not know .* \(it has none\)"):
        reference.build(traced(Empty()), {})


def test_an_expansion_must_have_the_types_of_the_rule() -> None:
    @dataclass(frozen=True)
    class Halved(Op):
        def infer(self, x: TensorType) -> TensorType:
            return TensorType(DType.F16, x.shape)

        def expand(self, *inputs: Tensor) -> Tensor:
            return F.scale(inputs[0], 0.5)

    with pytest.raises(
        GraphError,
        match=r"the expansion of halved gives f32\[tokens, 8\], its rule f16\[tokens, 8\]",
    ):
        expand(traced(Halved()), "plain", lowers)


def test_an_expansion_that_needs_itself_does_not_hang() -> None:
    @dataclass(frozen=True)
    class Endless(Op):
        def infer(self, x: TensorType) -> TensorType:
            return x

        def expand(self, *inputs: Tensor) -> Any:
            return Endless()(F.scale(inputs[0], 0.5))

    with pytest.raises(GraphError, match="the expansion of endless for plain does not end"):
        expand(traced(Endless()), "plain", lowers)


class SwishMLP(GatedMLP):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x)
        return self.down_proj(F.mul(Swish()(gate), up))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_with_a_plugin_runs_on_every_engine(engine: str) -> None:
    """Llama with silu written as a plugin is Llama: by definition here, by expansion there."""
    some = case("llama")
    model = registry.read(some.config).build()
    assert isinstance(model, LlamaForCausalLM)
    for block in model.model.layers:
        assert isinstance(block, LlamaBlock)
        block.mlp = SwishMLP(64, 40)
    graph = trace(model, max_context=some.max_context)
    assert len(list(graph.find(Swish))) == 3
    kind = engine_kind(engine)
    session = kind.build(graph, {}).open(BoundArrays(model, some.checkpoint()), OPTIONS[engine])
    lengths = [len(ids) for ids in some.sequences]
    random = np.random.default_rng(0)
    found = play(session, some.sequences, together(lengths), random)
    session.close()
    assert relative_error(found, expected("llama")) < TOLERANCE[engine]


def test_openvino_refuses_what_it_cannot_run_by_name() -> None:
    pytest.importorskip("openvino", reason="the openvino engine needs openvino")
    from paddock.engines import openvino

    with pytest.raises(
        BuildError, match=r"model\.act .*the engine openvino does not know the op op"
    ):
        openvino.build(traced(Opaque()), {})
