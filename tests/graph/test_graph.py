"""The graph itself: where nodes come from, what verify catches, how it reads as text."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import paddock.graph.ops as F
from paddock.graph import DType, Graph, GraphError, Module, Node, Parameter, Tensor, use_graph
from paddock.graph.tensor import TOKENS, TensorType
from paddock.layers import trace
from paddock.models import registry
from tests.graph.written import tensor, tensors
from tests.models.parity_cases import case


class Doubled(Module):
    def __init__(self) -> None:
        self.weight = Parameter((4,))

    def forward(self, x: Tensor) -> Tensor:
        return F.mul(x, self.weight.tensor) * 2.0


class Model(Module):
    def __init__(self) -> None:
        self.first = Doubled()
        self.second = Doubled()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + x


def traced() -> Graph:
    graph, model = Graph(), Model()
    model.assign_names()
    with use_graph(graph):
        graph.outputs = (model(tensor("f32[tokens, 4]")),)
    return graph


def test_nodes_know_their_module_and_their_line() -> None:
    graph = traced()
    assert [n.path for n in graph.nodes] == ["", *["first"] * 3, *["second"] * 3, ""]
    here = "tests/graph/test_graph.py"
    line = inspect.getsourcelines(Doubled.forward)[1] + 1
    assert {n.source for n in graph.nodes[1:7]} == {f"{here}:{line}"}
    assert graph.nodes[-1].source == f"{here}:{inspect.getsourcelines(Model.forward)[1] + 1}"
    assert graph.nodes[1].where == f"first ({here}:{line})"


def test_lines_of_a_traced_model_are_those_of_layers_and_models() -> None:
    """Whatever link or installation the rooms are reached through, and after all passes."""
    graph = trace(registry.read(case("qwen3").config).build(), max_context=8)
    files = {n.source.partition(":")[0] for n in graph.nodes}
    assert {"layers/linear.py", "layers/attention.py", "models/llama.py"} <= files
    assert all(f.startswith(("layers/", "models/")) for f in files)
    for node in graph.nodes:
        file, _, line = node.source.partition(":")
        text = (Path(__file__).parents[2] / file).read_text().splitlines()[int(line) - 1]
        assert text.strip(), node.source
    adds = {n.path: n.source for n in graph.find(F.Add)}
    assert adds["model.layers.1"].startswith("models/llama.py:")
    (norm,) = (n for n in graph.find(F.RMSNorm) if n.path == "model.layers.2.self_attn.q_norm")
    assert norm.source.startswith("layers/norm.py:")


def test_a_path_like_that_of_the_room_is_not_in_the_room(tmp_path: Path) -> None:
    """Callers are told from this room by whole folder names."""
    import paddock.graph.graph as module

    assert module._ROOM.endswith("/graph/")
    plugin = tmp_path / "plugin.py"
    plugin.write_text("def scaled(x):\n    return x * 3.0\n")
    namespace: dict[str, object] = {}
    exec(compile(plugin.read_text(), str(plugin), "exec"), namespace)
    graph = Graph()
    with use_graph(graph):
        namespace["scaled"](tensor("f32[4]"))  # type: ignore[operator]
    assert graph.nodes[-1].source == f"{plugin}:2"


def test_a_source_is_one_node_however_often_it_is_asked_for() -> None:
    model = Doubled()
    model.assign_names("w.")
    graph = Graph()
    with use_graph(graph):
        assert model.weight.tensor is model.weight.tensor
    assert len(graph.nodes) == 1


def test_the_dump_is_one_line_a_node() -> None:
    assert traced().dump() == (
        "%0 = input(key=x) : f32[tokens, 4]\n"
        "%1 = weight(key=first.weight) : f32[4]  # first\n"
        "%2 = mul(%0, %1) : f32[tokens, 4]  # first\n"
        "%3 = scale(%2, factor=2) : f32[tokens, 4]  # first\n"
        "%4 = weight(key=second.weight) : f32[4]  # second\n"
        "%5 = mul(%3, %4) : f32[tokens, 4]  # second\n"
        "%6 = scale(%5, factor=2) : f32[tokens, 4]  # second\n"
        "%7 = add(%6, %0) : f32[tokens, 4]\n"
        "return %7\n"
    )
    line = inspect.getsourcelines(Doubled.forward)[1] + 1
    assert f"%2 = mul(%0, %1) : f32[tokens, 4]  # first tests/graph/test_graph.py:{line}\n" in (
        traced().dump(sources=True)
    )


def test_a_sound_graph_verifies() -> None:
    traced().verify()


def broken(change: str) -> Graph:
    graph = traced()
    add = graph.nodes[-1]
    match change:
        case "an operand of another graph":
            add.inputs = (traced().nodes[-1].outputs[0], add.inputs[1])
        case "an operand that comes later":
            graph.nodes.insert(0, graph.nodes.pop())
        case "a node that was dropped":
            del graph.nodes[3]
        case "a node that stands twice":
            graph.nodes.append(add)
        case "a type made by hand":
            add.outputs[0].type = TensorType(DType.BF16, (TOKENS, 4))
        case "operands that the rule refuses":
            graph.nodes[1].op = replace(graph.nodes[1].op, shape=(5,))  # type: ignore[call-arg]
            graph.nodes[1].outputs[0].type = TensorType(DType.F32, (5,))
        case "an output too many":
            add.outputs = (*add.outputs, Tensor(add, 1, add.outputs[0].type))
        case "an output with another's number":
            add.outputs = (Tensor(add, 1, add.outputs[0].type),)
            graph.outputs = add.outputs
        case "an output of another's":
            other = Node(add.op, add.inputs, "elsewhere", "x.py:1")
            other.outputs = (Tensor(add, 0, add.outputs[0].type),)
            graph.nodes.append(other)
        case "one name with two types":
            with use_graph(graph):
                F.input_tensor("x", DType.F32, TOKENS, 5)
        case "no outputs":
            graph.outputs = ()
        case "an output that nobody makes":
            graph.outputs = traced().outputs
        case "an attribute of the wrong type":
            graph.nodes[3].op = F.Scale("2")  # type: ignore[arg-type]
    return graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("an operand of another graph", "reads a add of .* that no earlier node of this graph"),
        ("an operand that comes later", "reads a scale of second .* that no earlier node"),
        ("a node that was dropped", "second .*: mul reads a scale of first .* no earlier node"),
        ("a node that stands twice", "output 0 of add is another's"),
        ("a type made by hand", r"add carries bf16\[tokens, 4\], its rule gives f32\[tokens, 4\]"),
        ("operands that the rule refuses", r"first \(tests/.*\): mul: shapes do not match"),
        ("an output too many", r"carries f32\[tokens, 4\], f32\[tokens, 4\], its rule gives f32"),
        ("an output with another's number", "output 0 of add is another's"),
        ("an output of another's", "elsewhere .*output 0 of add is another's"),
        ("one name with two types", r"input 'x' is f32\[tokens, 5\], at .* it is f32\[tokens, 4\]"),
        ("no outputs", "the graph has no outputs"),
        ("an output that nobody makes", "output add is not part of the graph"),
        ("an attribute of the wrong type", r"scale: attribute 'factor' is '2' of type str"),
    ],
)
def test_verify_catches(change: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        broken(change).verify()


def test_parts_of_a_fused_weight_may_stand_beside_the_whole() -> None:
    graph = Graph()
    with use_graph(graph):
        whole = F.Weight("w", DType.F32, (6, 4), (("q", 4), ("k", 2)))()
        pieces = F.split_parts(whole)
    assert pieces is not None
    graph.outputs = (whole, *pieces)
    graph.verify()
    assert [str(t.type) for t in pieces] == ["f32[4, 4]", "f32[2, 4]"]


def test_splitting_parts_leaves_other_tensors_alone() -> None:
    with use_graph(Graph()):
        (x,) = tensors("f32[tokens, 4]")
        assert F.split_parts(x) is None
        assert F.split_parts(F.Weight("w", DType.F32, (6, 4))()) is None
        integers = F.Weight("w", DType.I8, (6, 4), (("q", 4), ("k", 2)))()
        scales = F.Weight("w.scale", DType.F16, (6, 1), (("q", 4), ("k", 2)))()
        pieces = F.split_parts(F.Dequantize(DType.F32)(integers, scales))
        assert pieces is not None
        assert [t.node.inputs[1].type.shape for t in pieces] == [(4, 1), (2, 1)]
        alone = F.Weight("v.scale", DType.F16, (6, 1))()
        assert F.split_parts(F.Dequantize(DType.F32)(integers, alone)) is None


def test_threads_trace_graphs_of_their_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as threads:
        dumps = list(threads.map(lambda _: traced().dump(), range(16)))
    assert set(dumps) == {traced().dump()}


def test_deep_modules_need_no_deep_stack() -> None:
    """A graph of many nodes in a row is walked without recursion."""
    graph = Graph()
    with use_graph(graph):
        x = tensor("f32[4]")
        for _ in range(3 * sys.getrecursionlimit()):
            x = x * 1.5
        graph.outputs = (x,)
    from paddock.graph.passes import STANDARD, run_passes
    from paddock.graph.serialize import from_json, to_json

    assert len(run_passes(graph, STANDARD).nodes) == len(graph.nodes)
    assert len(from_json(to_json(graph)).nodes) == len(graph.nodes)
