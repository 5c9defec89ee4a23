"""The graph under construction, and the graph when done."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paddock.graph.dtype import DType
from paddock.graph.errors import GraphError
from paddock.graph.tensor import Node, Tensor, TensorType

if TYPE_CHECKING:
    from paddock.graph.op import Op

_ROOM = str(Path(__file__).resolve().parent) + os.sep
_HOUSE = str(Path(__file__).resolve().parents[1]) + os.sep


@dataclass(frozen=True)
class Passage:
    """What was given to a module, or what it gave back, as it was traced."""

    path: str
    way: Literal["in", "out"]
    tensors: tuple[Tensor, ...]


class Graph:
    """Nodes in the order in which they were inserted, which is an order of evaluation.

    `dtype` is the type that activations and unquantized weights have.
    """

    def __init__(self, dtype: DType = DType.F32) -> None:
        self.dtype = dtype
        self.nodes: list[Node] = []
        self.outputs: tuple[Tensor, ...] = ()
        self.passages: list[Passage] = []
        self._path: list[str] = []
        self._source: str | None = None
        self._sources: dict[Op, Tensor] = {}

    def insert(self, op: Op, inputs: tuple[Tensor, ...]) -> Any:
        """Add a node; its outputs are one tensor or a tuple of several."""
        node = Node(op, inputs, ".".join(self._path), self._source or _calling_line())
        for i, operand in enumerate(inputs):
            if not isinstance(operand, Tensor):
                raise GraphError(
                    f"{node.where}: {op.name}: operand {i} is a {type(operand).__name__},"
                    " expected a tensor of the graph"
                )
        types = _inferred(node)
        node.outputs = tuple(
            Tensor(node, i, t) for i, t in enumerate(types if isinstance(types, tuple) else [types])
        )
        self.nodes.append(node)
        if not inputs:
            self._sources.setdefault(op, node.outputs[0])
        return node.outputs if isinstance(types, tuple) else node.outputs[0]

    def insert_once(self, op: Op) -> Tensor:
        """The tensor of an op without operands: a slot that two layers share is one node."""
        tensor = self._sources.get(op)
        if tensor is None:
            tensor = self.insert(op, ())
        return tensor

    def withdraw(self, count: int) -> None:
        """Take out all nodes but the first `count`: those that a rewrite made for nothing."""
        for node in self.nodes[count:]:
            if not node.inputs and self._sources.get(node.op) is node.outputs[0]:
                del self._sources[node.op]
        del self.nodes[count:]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes inserted inside belong to the submodule `name` of the one around it."""
        self._path.append(name)
        try:
            yield
        finally:
            self._path.pop()

    def note(self, way: Literal["in", "out"], values: Iterable[Any]) -> None:
        """Remember the tensors that pass into the module of the current scope, or out of it."""
        tensors = tuple(value for value in values if isinstance(value, Tensor))
        self.passages.append(Passage(".".join(self._path), way, tensors))

    def at(self, node: Node) -> AbstractContextManager[None]:
        """Nodes inserted inside take the place and the source line of `node` (for rewrites)."""
        return self.placed(node.path, node.source)

    @contextmanager
    def placed(self, path: str, source: str) -> Iterator[None]:
        """Nodes inserted inside have this module path and source line."""
        kept = self._path, self._source
        self._path, self._source = [path] if path else [], source
        try:
            yield
        finally:
            self._path, self._source = kept

    def find(self, op: type[Op]) -> Iterator[Node]:
        return (n for n in self.nodes if isinstance(n.op, op))

    def count_ops(self) -> dict[str, int]:
        """How many nodes there are of each op, the most frequent first."""
        return dict(Counter(node.op.name for node in self.nodes).most_common())

    def verify(self) -> None:
        """Raise `GraphError` unless the graph can be evaluated from its first node to its last.

        Every operand is made by an earlier node, once; what is fed from outside under one name has
        one type; there is something to give back. The types that nodes carry are inferred again,
        so that a pass which built a node by hand cannot smuggle in a wrong one.
        """
        from paddock.graph.ops.source import Source

        made: set[int] = set()
        fed: dict[tuple[str, ...], Node] = {}
        for node in self.nodes:
            for tensor in node.inputs:
                if id(tensor) not in made:
                    raise GraphError(
                        f"{node.where}: {node.op.name} reads a {tensor.node.op.name} of"
                        f" {tensor.node.where} that no earlier node of this graph makes"
                    )
            types = _inferred(node)
            types = types if isinstance(types, tuple) else (types,)
            found = tuple(t.type for t in node.outputs)
            if types != found:
                raise GraphError(
                    f"{node.where}: {node.op.name} carries {_listed(found)}, its rule gives"
                    f" {_listed(types)}"
                )
            for i, tensor in enumerate(node.outputs):
                if tensor.node is not node or tensor.index != i or id(tensor) in made:
                    raise GraphError(f"{node.where}: output {i} of {node.op.name} is another's")
                made.add(id(tensor))
            if isinstance(node.op, Source):
                first = fed.setdefault(node.op.feed, node)
                if types != tuple(t.type for t in first.outputs):
                    raise GraphError(
                        f"{node.where}: {node.op.name} {node.op.key!r} is {types[0]}, at"
                        f" {first.where} it is {first.outputs[0].type}; one name has one type"
                    )
        if not self.outputs:
            raise GraphError("the graph has no outputs")
        for output in self.outputs:
            if id(output) not in made:
                raise GraphError(f"output {output.node.op.name} is not part of the graph")

    def dump(self, *, sources: bool = False) -> str:
        """One line a node, as text that a person or a golden file can compare."""
        names: dict[int, str] = {}
        lines = []
        for i, node in enumerate(self.nodes):
            for tensor in node.outputs:
                tail = f".{tensor.index}" if len(node.outputs) > 1 else ""
                names[id(tensor)] = f"%{i}{tail}"
            given = [names[id(t)] for t in node.inputs]
            given += [f"{k}={_short(v)}" for k, v in node.op.noted_attributes.items()]
            types = ", ".join(str(t.type) for t in node.outputs)
            place = f"  # {node.path}" if node.path else ""
            if sources:
                place = f"{place or '  #'} {node.source}"
            lines.append(f"%{i} = {node.op.name}({', '.join(given)}) : {types}{place}")
        lines.append(f"return {', '.join(names[id(t)] for t in self.outputs)}")
        return "\n".join(lines) + "\n"


_GRAPH: ContextVar[Graph | None] = ContextVar("graph", default=None)


def current_graph() -> Graph:
    graph = _GRAPH.get()
    if graph is None:
        raise GraphError("no graph is being traced: call ops inside `with use_graph(Graph()):`")
    return graph


@contextmanager
def use_graph(graph: Graph) -> Iterator[Graph]:
    token = _GRAPH.set(graph)
    try:
        yield graph
    finally:
        _GRAPH.reset(token)


def _calling_line() -> str:
    """file:line of the nearest caller outside this room, relative to the project where inside."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _resolved(frame.f_code.co_filename).startswith(_ROOM):
        frame = frame.f_back
    file = _resolved(frame.f_code.co_filename)
    return f"{file.removeprefix(_HOUSE)}:{frame.f_lineno}"


_RESOLVED: dict[str, str] = {}


def _resolved(file: str) -> str:
    # Rooms are reached through links; one file must have one name.
    if file not in _RESOLVED:
        _RESOLVED[file] = str(Path(file).resolve())
    return _RESOLVED[file]


def _inferred(node: Node) -> TensorType | tuple[TensorType, ...]:
    """What the op's rule gives for the node's operands; errors say where in the model it stands."""
    types = [t.type for t in node.inputs]
    try:
        node.op.check_attributes()
        return node.op.infer(*types)
    except GraphError as error:
        raise GraphError(f"{node.where}: {node.op.name}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        given = f"{len(types)} operands ({_listed(tuple(types))})"
        try:
            signature(node.op.infer).bind(*types)
        except TypeError as mismatch:
            message = f"{node.where}: {node.op.name} does not take {given}: {mismatch}"
            raise GraphError(message) from None
        # A rule that did not foresee its operands, in a plugin say: the place helps, too.
        raise GraphError(
            f"{node.where}: the shape rule of {node.op.name} fails for {given}:"
            f" {type(error).__name__}: {error}"
        ) from error


def _listed(types: tuple[TensorType, ...]) -> str:
    return ", ".join(map(str, types))


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 8:
        head = ", ".join(_short(v) for v in value[:3])
        return f"({head}, ... {len(value)} in all)"
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return f"({', '.join(_short(v) for v in value)}{comma})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
