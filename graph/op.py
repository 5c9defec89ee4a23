"""What an op is: attributes, a shape rule, and a NumPy definition of what it computes."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from paddock.graph.cuda_source import CudaSource
from paddock.graph.dtype import Array, DType
from paddock.graph.errors import GraphError
from paddock.graph.graph import current_graph
from paddock.graph.tensor import Dim, Tensor, TensorType

OPS: dict[str, type[Op]] = {}  # by name, for reading graphs back from a file


@dataclass(frozen=True)
class Op:
    """One operation. Fields are its attributes; instances are immutable and compare by value.

    An attribute is None, a bool, int, float (not NaN, which equals nothing), str, `DType`, `Dim`,
    or a tuple of such: what a graph's file can hold. It must be what its annotation says.

    A subclass gives `infer` (the types of the outputs, or a `GraphError`) and `compute` (its
    NumPy definition). It is the same for the ops of Paddock and for a user's plugin:

        @dataclass(frozen=True)
        class Clamp(Op):
            limit: float

            def infer(self, x: TensorType) -> TensorType:
                return x

            def compute(self, x: Array) -> Array:
                return np.clip(x, -self.limit, self.limit)

            lowerings = {"openvino": lambda op, x: opset.clamp(x, -op.limit, op.limit)}

    `lowerings` holds implementations by engine name, in the form which that engine's own table
    has; `cuda_source` one for the engines that run CUDA C++: cuda, and tensorrt where the release
    takes plugins. Where an engine has none, `expand` is asked for a subgraph of other ops.

    `has_effects` says that computing it twice is not the same as once (it writes into a cache, it
    talks to another rank): such nodes are never merged. `is_by_rows` says that row i of the
    outputs, along the first axis, is made of the rows i of the operands that have the same symbolic
    axis, and of the others whole: of such an op, rows that nobody reads need not be computed.
    `abstract=True` in the class's bases keeps a class that only others derive from out of `OPS`.
    """

    name: ClassVar[str]
    lowerings: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    cuda_source: ClassVar[CudaSource | None] = None
    has_effects: ClassVar[bool] = False
    is_by_rows: ClassVar[bool] = False

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__)
        cls.name = cls.name.lower()
        if abstract:
            return
        existing = OPS.get(cls.name)
        # A class re-created by its own module (dataclass slots, reload) may take its own name.
        if existing is not None and existing.__module__ != cls.__module__:
            raise GraphError(
                f"an op named {cls.name!r} exists already, in {existing.__module__};"
                f" rename the class {cls.__name__} of {cls.__module__}"
            )
        OPS[cls.name] = cls

    def infer(self, *inputs: Any, **_: Any) -> TensorType | tuple[TensorType, ...]:
        """Types of the outputs. Raises `GraphError` for operands that the op does not take."""
        raise GraphError(f"{type(self).__name__} declares no shape rule: define infer()")

    def compute(self, *inputs: Any, **_: Any) -> Array | tuple[Array, ...]:
        """The outputs' values: the op's executable specification."""
        raise GraphError(f"{type(self).__name__} declares no NumPy definition: define compute()")

    def expand(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...] | None:
        """The same as a subgraph of other ops, or None where there is no such form."""
        return None

    def __call__(self, *inputs: Tensor) -> Any:
        """Insert a node into the current graph; returns its tensor, or a tuple of several."""
        return current_graph().insert(self, inputs)

    def check_attributes(self) -> None:
        """Raise `GraphError` for an attribute that is not what its annotation says."""
        for name, annotation in _annotations(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, annotation):
                expected = annotation.__name__ if isinstance(annotation, type) else annotation
                raise GraphError(
                    f"attribute {name!r} is {_shortened(value)} of type {type(value).__name__},"
                    f" expected {expected}"
                )

    @property
    def attributes(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def noted_attributes(self) -> dict[str, Any]:
        """The attributes that a dump shows: those that differ from their defaults."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}


_ANNOTATIONS: dict[type[Op], dict[str, Any]] = {}


def _annotations(kind: type[Op]) -> dict[str, Any]:
    """Field -> its type; fields whose annotation cannot be resolved may hold any attribute."""
    if kind not in _ANNOTATIONS:
        try:
            hints = get_type_hints(kind)
        except NameError:  # `from __future__ import annotations` in a function's own scope
            hints = {}
        _ANNOTATIONS[kind] = {f.name: hints.get(f.name, Any) for f in fields(kind)}
    return _ANNOTATIONS[kind]


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of the annotated type, exactly: 1 is no bool, np.float32(1) no float."""
    if type(value) is annotation and annotation is not float:
        return annotation in _PLAIN
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if annotation is Any:
        if type(value) is tuple:
            return all(_fits(v, Any) for v in value)
        return type(value) in _PLAIN and value == value  # NaN equals nothing
    if origin is tuple:
        if type(value) is not tuple:
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(v, arguments[0]) for v in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if annotation is float:
        if type(value) is int:
            return abs(value) <= 2**53
        return type(value) is float and not math.isnan(value)
    return annotation is None and value is None


_PLAIN = (types.NoneType, bool, int, float, str, DType, Dim)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
