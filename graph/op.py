"""What an op is: attributes, a shape rule, and a NumPy definition of what it computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from paddock.graph.dtype import Array
from paddock.graph.errors import GraphError
from paddock.graph.graph import current_graph
from paddock.graph.tensor import Tensor, TensorType

OPS: dict[str, type[Op]] = {}  # by name, for reading graphs back from a file


@dataclass(frozen=True)
class Op:
    """One operation. Fields are its attributes; instances are immutable and compare by value.

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
    has. Where an engine has none, `expand` is asked for a subgraph of other ops.
    """

    name: ClassVar[str]
    lowerings: ClassVar[Mapping[str, Callable[..., Any]]] = {}

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__)
        cls.name = cls.name.lower()
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

    @property
    def attributes(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def noted_attributes(self) -> dict[str, Any]:
        """The attributes that a dump shows: those that differ from their defaults."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}
