"""Graphs as JSON: what an engine folder keeps of a topology.

The text is strict JSON: an infinite attribute is written as `{"float": "inf"}`, and NaN, which no
op may have as an attribute, is an error both ways.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import paddock.graph.ops  # noqa: F401 - ops are known by name once their modules are imported
from paddock.graph.dtype import DType
from paddock.graph.errors import GraphError, nearest
from paddock.graph.graph import Graph
from paddock.graph.op import OPS, Op
from paddock.graph.tensor import Dim, Tensor, TensorType

SCHEMA = 1


def to_json(graph: Graph) -> str:
    """Text with one node a line; equal graphs give equal text."""
    number: dict[int, tuple[int, int]] = {}
    lines = []
    for i, node in enumerate(graph.nodes):
        number.update({id(t): (i, t.index) for t in node.outputs})
        record = {
            **op_record(node.op),
            "inputs": [number[id(t)] for t in node.inputs],
            "path": node.path,
            "source": node.source,
        }
        lines.append(json.dumps(record, allow_nan=False))
    outputs = json.dumps([number[id(t)] for t in graph.outputs])
    head = f'{{"schema": {SCHEMA}, "dtype": "{graph.dtype}", "outputs": {outputs}, "nodes": [\n'
    return head + ",\n".join(lines) + "\n]}\n"


def from_json(text: str) -> Graph:
    """The graph again, its types inferred anew. Raises `GraphError` for anything out of order."""
    try:
        data = json.loads(text, parse_constant=_refuse)
        if data["schema"] != SCHEMA:
            raise GraphError(f"graph schema {data['schema']!r:.40}, this version reads {SCHEMA}")
        graph = Graph(DType(data["dtype"]))
        for record in data["nodes"]:
            op = op_of(record)
            inputs = tuple(_tensor(graph, *pair) for pair in record["inputs"])
            with graph.placed(_text(record["path"]), _text(record["source"])):
                graph.insert(op, inputs)
        graph.outputs = tuple(_tensor(graph, *pair) for pair in data["outputs"])
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise GraphError(f"the graph's file is damaged: {problem:.200}") from error
    graph.verify()
    return graph


def op_record(op: Op) -> dict[str, Any]:
    """An op as strict JSON holds it."""
    return {"op": op.name, "attributes": {k: _encode(v) for k, v in op.attributes.items()}}


def op_of(record: Mapping[str, Any]) -> Op:
    """The op of a record. Raises `GraphError` for one that nobody declares."""
    return _op(record["op"], record["attributes"])


def type_record(kind: TensorType) -> dict[str, Any]:
    """A tensor's type as strict JSON holds it."""
    return {"dtype": str(kind.dtype), "shape": _encode(kind.shape)}


def type_of(record: Mapping[str, Any]) -> TensorType:
    return TensorType(DType(record["dtype"]), _decode(record["shape"]))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value


def _op(name: str, attributes: dict[str, Any]) -> Op:
    kind = OPS.get(name)
    if kind is None:
        raise GraphError(
            f"unknown op {name!r}{nearest(name, OPS)}; if a plugin defines it, name the plugin's"
            " module in `plugins`"
        )
    known = {f.name for f in fields(kind)}
    if set(attributes) - known:
        raise GraphError(f"op {name!r} has no attribute {min(set(attributes) - known)!r}")
    return kind(**{k: _decode(v) for k, v in attributes.items()})


def _tensor(graph: Graph, node: int, index: int) -> Tensor:
    if not (
        type(node) is type(index) is int
        and 0 <= node < len(graph.nodes)
        and 0 <= index < len(graph.nodes[node].outputs)
    ):
        raise GraphError(f"the graph's file is damaged: no output {index} of node {node}")
    return graph.nodes[node].outputs[index]


def _encode(value: Any) -> Any:
    match value:
        case DType():
            return {"dtype": str(value)}
        case Dim():
            return {"dim": value.name}
        case tuple():
            return [_encode(v) for v in value]
        case float() if math.isinf(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
    raise GraphError(f"an attribute of type {type(value).__name__} cannot be written to a file")


def _decode(value: Any) -> Any:
    match value:
        case {"dtype": str(name)}:
            return DType(name)
        case {"dim": str(name)}:
            return Dim(name)
        case {"float": "inf" | "-inf" as text}:
            return float(text)
        case list():
            return tuple(_decode(v) for v in value)
    return value
