"""Graphs as JSON: the same graph comes back, and nothing but a graph or an error comes back."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paddock.graph.ops as F
from paddock.graph import DType, Graph, GraphError, Op, TensorType, use_graph
from paddock.graph.op import OPS
from paddock.graph.serialize import from_json, to_json
from paddock.graph.tensor import Dim
from paddock.layers import trace
from paddock.models import registry
from tests.graph.random_graphs import RandomGraph
from tests.graph.written import tensor
from tests.models.parity_cases import CHARACTERISTIC, case


@pytest.fixture(scope="module")
def anything() -> Iterator[type[Op]]:
    @dataclass(frozen=True)
    class Anything(Op):
        value: Any

        def infer(self) -> TensorType:
            return TensorType(DType.F32, (4,))

    yield Anything
    del OPS["anything"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(DType)
    | st.builds(Dim, st.text()),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_attributes_come_back_as_they_were(anything: type[Op], value: Any) -> None:
    graph = Graph(DType.BF16)
    with use_graph(graph):
        graph.outputs = (anything(value)(),)  # type: ignore[call-arg]
    text = to_json(graph)
    json.loads(text, parse_constant=pytest.fail)  # strict JSON: no NaN, no Infinity
    back = from_json(text)
    found = back.nodes[0].op.attributes["value"]
    # Types too: 1, 1.0 and True are equal for Python. -0.0 has its sign in the text.
    assert repr(found) == repr(value)
    assert to_json(back) == text
    assert back.dtype is DType.BF16


@pytest.mark.parametrize("value", [math.nan, (1.0, math.nan), [1], {"a": 1}, object(), b"x"])
def test_what_a_file_cannot_hold_is_refused_when_it_is_written(
    anything: type[Op], value: Any
) -> None:
    with use_graph(Graph()), pytest.raises(GraphError, match="anything: attribute 'value' is"):
        anything(value)()  # type: ignore[call-arg]


@pytest.mark.parametrize("name", CHARACTERISTIC)
def test_models_come_back_with_paths_and_lines(name: str) -> None:
    graph = trace(registry.read(case(name).config).build(), max_context=8)
    back = from_json(to_json(graph))
    assert back.dump(sources=True) == graph.dump(sources=True)
    assert [n.op for n in back.nodes] == [n.op for n in graph.nodes]
    assert to_json(back) == to_json(graph)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 25))
def test_random_graphs_come_back(seed: int, size: int) -> None:
    graph = RandomGraph(seed, size).graph
    assert from_json(to_json(graph)).dump(sources=True) == graph.dump(sources=True)


def small() -> Graph:
    graph = Graph()
    with use_graph(graph), graph.scope("mlp"):
        x = tensor("f32[tokens, 8]")
        cos, sin = F.rotary_angles(tensor("i64[tokens]", "p"), (1.0, 0.5))
        heads = F.rotary(F.reshape(x, 2, 4), cos, sin)
        weight = F.Weight("w", DType.F32, (6, 8), (("a", 4), ("b", 2)))()
        a, b = F.split(F.linear(F.reshape(heads, 8), weight), 4, 2)
        graph.outputs = (F.rms_norm(a, F.Weight("n", DType.F32, (4,))(), 1e-5), F.silu(b))
    return graph


SMALL = json.loads(to_json(small()))


def changed(path: list[Any], value: Any) -> str:
    data = copy.deepcopy(SMALL)
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged: JSONDecodeError"),
        ("null", "damaged: TypeError"),
        ("[]", "damaged: TypeError"),
        ("{}", "damaged: KeyError: 'schema'"),
        ("[" * 100_000, "damaged: RecursionError"),
        ('{"schema": ' + "9" * 5000 + "}", "damaged: ValueError"),
        ('{"schema": 1, "dtype": NaN}', "damaged: ValueError: NaN is not JSON"),
        (changed(["schema"], 2), "graph schema 2, this version reads 1"),
        (changed(["schema"], ["x" * 99]), r"graph schema \['x"),
        (changed(["dtype"], "f31"), "damaged: ValueError: 'f31' is not a valid DType"),
        (changed(["nodes"], {"a": 1}), "damaged: TypeError"),
        (changed(["nodes", 0], 7), "damaged: TypeError"),
        (
            changed(["nodes", 0, "op"], "inpt"),
            "unknown op 'inpt'; nearest .* name the plugin's mod",
        ),
        (changed(["nodes", 0, "op"], ["input"]), "damaged: TypeError"),
        (changed(["nodes", 0, "op"], "source"), "unknown op 'source'"),
        (changed(["nodes", 0, "op"], "op"), "unknown op 'op'"),
        (changed(["nodes", 0, "op"], "__class__"), "unknown op '__class__'"),
        (changed(["nodes", 0, "attributes", "key"], KeyError), "damaged: TypeError.*'key'"),
        (changed(["nodes", 0, "attributes", "kez"], 1), "op 'input' has no attribute 'kez'"),
        (
            changed(["nodes", 0, "attributes", "key"], 7),
            "attribute 'key' is 7 of type int, expected",
        ),
        (changed(["nodes", 0, "attributes", "shape"], ["tokens", 8]), "attribute 'shape' is"),
        (changed(["nodes", 0, "attributes", "shape"], [-8]), "has an empty axis"),
        (changed(["nodes", 0, "attributes", "shape"], [True, 8]), "attribute 'shape' is"),
        (changed(["nodes", 0, "attributes", "dtype"], "f32"), "attribute 'dtype' is 'f32' of type"),
        (changed(["nodes", 0, "attributes", "dtype"], {"dtype": "f31"}), "damaged: ValueError"),
        (changed(["nodes", 0, "attributes"], []), "damaged: AttributeError"),
        (changed(["nodes", 0, "path"], 3), "damaged: TypeError: expected text, found 3"),
        (changed(["nodes", 0, "source"], None), "damaged: TypeError: expected text, found None"),
        (changed(["nodes", 0, "source"], KeyError), "damaged: KeyError: 'source'"),
        (changed(["nodes", 2, "inputs", 0], [2, 0]), "damaged: no output 0 of node 2"),
        (changed(["nodes", 2, "inputs", 0], [-1, 0]), "damaged: no output 0 of node -1"),
        (changed(["nodes", 2, "inputs", 0], [0, 1]), "damaged: no output 1 of node 0"),
        (changed(["nodes", 2, "inputs", 0], [0.0, 0]), "damaged: no output 0 of node 0.0"),
        (changed(["nodes", 2, "inputs", 0], [True, 0]), "damaged: no output 0 of node True"),
        (changed(["nodes", 2, "inputs", 0], [0]), "damaged: TypeError"),
        (changed(["nodes", 2, "inputs"], []), "mlp .*rotary_angles does not take 0 operands"),
        (changed(["nodes", 2, "attributes", "frequencies"], [1.0, 0.25, 0.5]), "6 rotated elem"),
        (changed(["nodes", 2, "attributes", "frequencies"], ["a"]), "attribute 'frequencies' is"),
        (
            changed(["nodes", 2, "attributes", "factor"], {"float": "inf"}),
            "frequencies and factor must be finite",
        ),
        (changed(["nodes", 2, "attributes", "factor"], {"float": "nan"}), "attribute 'factor' is"),
        (changed(["outputs"], []), "the graph has no outputs"),
        (changed(["outputs"], [[99, 0]]), "damaged: no output 0 of node 99"),
        (changed(["outputs"], "ab"), "damaged: TypeError"),
    ],
)
def test_damage_is_named(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message) as error:
        from_json(text)
    assert len(str(error.value)) < 500


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


PLACES = list(places(SMALL))
HOSTILE = st.recursive(
    st.sampled_from([None, True, 0, -1, 10**40, 0.5, 1e308, "", "f32", "input", "x" * 300])
    | st.integers(-3, 12)
    | st.text(max_size=3)
    | st.sampled_from([{"dtype": "f16"}, {"dim": "tokens"}, {"dim": 3}, {"float": "-inf"}]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["op", "dtype", "dim", "float", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.sampled_from(PLACES), HOSTILE | st.just(KeyError)), min_size=1, max_size=3
    )
)
def test_hostile_values_give_a_graph_or_a_graph_error(edits: list[tuple[Any, Any]]) -> None:
    data = copy.deepcopy(SMALL)
    for path, value in edits:
        place = data
        try:
            for key in path[:-1]:
                place = place[key]
            if value is KeyError:
                del place[path[-1]]
            else:
                place[path[-1]] = copy.deepcopy(value)  # a later edit may write into it
        except (IndexError, KeyError, TypeError, AttributeError):
            continue  # an earlier edit took the place away
    read_or_refused(json.dumps(data))


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_damaged_text_gives_a_graph_or_a_graph_error(data: st.DataObject) -> None:
    text = to_json(small())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 40)))
        piece = data.draw(st.sampled_from(["", "[", "}", '"', "-", "9", "1e999", ",", "\x00"]))
        text = text[:start] + piece + text[stop:]
    read_or_refused(text)


def test_a_file_can_be_the_first_thing_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(to_json(small()))
    program = (
        "import sys; from paddock.graph.serialize import from_json;"
        "print(len(from_json(open(sys.argv[1]).read()).nodes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "graph.json")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == len(small().nodes)


def read_or_refused(text: str) -> None:
    try:
        graph = from_json(text)
    except GraphError:
        return
    graph.verify()
    assert from_json(to_json(graph)).dump() == graph.dump()
