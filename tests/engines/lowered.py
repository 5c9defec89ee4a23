"""Run a graph of a few ops, both as OpenVINO compiles it and by the ops' NumPy definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov

from paddock.engines.openvino.lowering import lower
from paddock.engines.openvino.weights import Weights
from paddock.engines.reference.evaluate import evaluate
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph.ops import Source, Weight, input_tensor
from paddock.graph.tensor import TOKENS


class Held:
    """Arrays by name, as a `WeightSource`; int4 is packed two a byte on the way out."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays

    def whole(self, name: str) -> Array:
        return self.arrays[name]

    def part(self, name: str, part: str) -> Array:
        raise AssertionError(f"{name} has no parts")

    def stored(self, name: str, part: str = "") -> Array:
        array = self.arrays[name]
        if array.dtype != DType.I4.numpy:
            return array
        pairs = array.astype(np.int8).view(np.uint8).reshape(*array.shape[:-1], -1, 2) & 0xF
        return pairs[..., 0] | pairs[..., 1] << 4


class Case:
    """Named arrays become operands as a model would have them: of the step, or weights."""

    def __init__(self, dtype: DType = DType.F32) -> None:
        self.dtype = dtype
        self.fed: dict[str, Array] = {}
        self.held: dict[str, Array] = {}
        self.weights: Weights | None = None  # OpenVINO does not own their memory

    def tokens(self, name: str, array: Array) -> Tensor:
        """[tokens, ...], known when a step runs."""
        self.fed[name] = array
        kind = next(k for k in DType if k.numpy == array.dtype)
        return input_tensor(name, kind, TOKENS, *array.shape[1:])

    def weight(self, name: str, array: Array) -> Tensor:
        self.held[name] = array
        kind = next(k for k in DType if k.numpy == array.dtype)
        tensor: Tensor = Weight(name, kind, array.shape)()
        return tensor


Build = Callable[[Case], Tensor | tuple[Tensor, ...]]


def traced(build: Build) -> tuple[Graph, Case]:
    """The graph that `build` makes, with what it is to be fed."""
    case = Case()
    with use_graph(Graph(case.dtype)) as graph:
        made = build(case)
    graph.outputs = made if isinstance(made, tuple) else (made,)
    graph.verify()
    return graph, case


def compiled(build: Build, precision: str = "f32", **properties: Any) -> tuple[Any, Case, Graph]:
    """The same graph, compiled."""
    graph, case = traced(build)
    case.weights = Weights(Held(case.held))
    model = ov.Core().compile_model(
        lower(graph, case.weights),
        "CPU",
        {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, **properties},
    )
    return model, case, graph


def outcomes(build: Build, precision: str = "f32", **properties: Any) -> list[tuple[Array, Array]]:
    """For every output of the graph: what OpenVINO makes of it, and what its definition says."""
    model, case, graph = compiled(build, precision, **properties)
    request = model.create_infer_request()
    for name, array in case.fed.items():
        request.set_tensor(name, ov.Tensor(array))
    request.infer()
    arrays = case.fed | case.held
    sources = [op for n in graph.nodes if isinstance(op := n.op, Source)]
    expected = evaluate(graph, {op: arrays[op.key] for op in sources})
    return [
        (request.get_tensor(f"output_{i}").data.copy(), np.asarray(wanted, np.float32))
        for i, wanted in enumerate(expected)
    ]


def error(build: Build, precision: str = "f32", **properties: Any) -> float:
    """The largest difference over all outputs, relative to the output's largest magnitude."""
    worst = 0.0
    for found, wanted in outcomes(build, precision, **properties):
        assert found.shape == wanted.shape
        worst = max(worst, float(np.abs(found - wanted).max()) / float(np.abs(wanted).max()))
    return worst


def layer_types(model: Any) -> list[str]:
    """What the compiler made of the graph, less its sources and results."""
    types = [
        n.get_rt_info()["layerType"].astype(str)
        for n in model.get_runtime_model().get_ordered_ops()
    ]
    return sorted(t for t in types if t not in ("Const", "Input", "Output"))
