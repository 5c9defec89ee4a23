"""Products of few rows beside rows of zeros: the same results, from as many rows as it takes."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from paddock.engines.openvino import session as opening
from paddock.engines.openvino.few_rows import FewRows
from paddock.engines.openvino.lowering import lower
from paddock.engines.openvino.weights import Weights
from paddock.engines.reference.evaluate import evaluate
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph import ops as F
from paddock.graph.ops import Source, Weight
from tests.engines.lowered import Case, Held
from tests.engines.test_openvino_session import TOLERANCE, WIDE, expected, opened, sequences
from tests.models.play import decode, play, relative_error, together

random = np.random.default_rng(5)


def layer(case: Case, tokens: int) -> tuple[Tensor, ...]:
    """Queries with a bias, then what an output projection and an MLP add to their input."""

    def weight(name: str, *shape: int) -> Tensor:
        values = np.asarray(random.standard_normal(shape) / np.sqrt(shape[-1]))
        return case.weight(name, values.astype(DType.BF16.numpy))

    x = case.tokens("x", random.standard_normal((tokens, 16)).astype(DType.BF16.numpy))
    normed = F.rms_norm(x, weight("norm", 16), 1e-5)
    queries = F.reshape(F.linear(normed, weight("q", 32, 16)) + weight("b", 32), 4, 8)
    y = x + F.linear(F.reshape(queries, 32), weight("o", 16, 32))
    gate, up = F.split(F.linear(y, weight("gate_up", 48, 16)), 24, 24)
    return queries, y + F.linear(F.silu(gate) * up, weight("down", 16, 24))


def traced(tokens: int) -> tuple[Graph, Case, Weights]:
    case = Case(DType.BF16)
    with use_graph(Graph(case.dtype)) as graph:
        graph.outputs = layer(case, tokens)
    graph.verify()
    return graph, case, Weights(Held(case.held))


def computed(model: ov.Model, case: Case) -> list[Array]:
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = ov.Core().compile_model(model, "CPU", properties).create_infer_request()
    fed = {name: np.asarray(array, np.float32) for name, array in case.fed.items()}
    return [np.array(result) for result in request.infer(fed).values()]


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 9])
def test_results_are_those_of_the_tokens(tokens: int) -> None:
    graph, case, weights = traced(tokens)
    with_zeros, without = (
        computed(lower(graph, weights, zeros=zeros), case) for zeros in (True, False)
    )
    arrays = case.fed | case.held
    sources = [op for n in graph.nodes if isinstance(op := n.op, Source)]
    exact = evaluate(graph, {op: arrays[op.key] for op in sources})
    for found, same, wanted in zip(with_zeros, without, exact, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, same, atol=1e-5)
        np.testing.assert_allclose(found, np.asarray(wanted, np.float32), atol=0.1)


def test_a_layer_adds_and_drops_them_once() -> None:
    """Not for queries: what they read is cut instead."""
    graph, _, weights = traced(1)
    kinds = [node.get_type_name() for node in lower(graph, weights, zeros=True).get_ops()]
    # To the layer's input and what attention makes of it, of two widths; from the layer's result.
    assert (kinds.count("Concat"), kinds.count("Slice")) == (2 + 2, 1)
    products = {node.inputs[1].node for node in FewRows.of(graph).products}
    assert {w.op.key for w in products if isinstance(w.op, Weight)} == {"o", "gate_up", "down"}


@pytest.mark.parametrize("vectors", [False, True])
def test_bf16_on_either_processor(monkeypatch: pytest.MonkeyPatch, vectors: bool) -> None:
    """With tiles and without: one token at a time, and two sequences together."""
    monkeypatch.setattr(opening, "multiplies_bf16_in_vectors", lambda: vectors)
    session = opened(WIDE, "bf16")
    layers = WIDE.config["num_hidden_layers"]
    report = session.runtime_report()["kernels"]
    added = sum(n for kind, n in report.items() if kind.startswith("Concatenation"))
    assert (added >= layers + 2) == vectors
    lengths = [90, 40]
    for plan in (decode(lengths, 33), together(lengths)):
        found = play(session, sequences(), plan, np.random.default_rng(1))
        assert relative_error(found, expected(WIDE.name, "bf16")) < TOLERANCE["bf16"]
    session.close()
