"""An INetworkDefinition of which nothing is taken on trust.

TensorRT's Python interface answers a mistake with None, or with a line in its log and a setter that
did nothing; shape rules are looked at when somebody asks for a shape. Here every layer is looked at
as soon as it is made, every setter is read back, and what is wrong is raised under the place in the
model that asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.compiler_log import CompilerLog
from paddock.engines.tensorrt.flavours import Flavour
from paddock.graph import Array, DType, Node

# What `ITensor`s and `Weights` of each of the graph's types are, by the name in trt.DataType.
DATA_TYPES: dict[DType, str] = {
    DType.F32: "FLOAT",
    DType.F16: "HALF",
    DType.BF16: "BF16",
    DType.I64: "INT64",
    DType.I32: "INT32",
    DType.I8: "INT8",
    DType.U8: "UINT8",
    DType.I4: "INT4",
    DType.F8E4M3: "FP8",
    DType.BOOL: "BOOL",
}

Tensor = Any  # an ITensor
Layer = Any  # an ILayer


class CheckedNetwork:
    """Layers by name, each checked; `constants` are the arrays that TensorRT only refers to,
    `refittable` the names of those that a plan may be given anew.

    Layer names are `module path:op`, with a number where a node becomes several layers; each
    carries its node's path, source line and op as JSON in `metadata`.
    """

    def __init__(self, flavour: Flavour, log: CompilerLog, network: Any) -> None:
        self.flavour, self.log, self.raw = flavour, log, network
        self.constants: dict[str, Array] = {}
        self.refittable: list[str] = []
        self._kept: list[object] = []
        self._node: Node | None = None
        self._weights: tuple[str, ...] = ()
        self._names: set[str] = set()
        self._scalars: dict[tuple[float | int, DType, int], Tensor] = {}
        self._seen = len(log.errors)

    @contextmanager
    def at(self, node: Node, weights: Sequence[str] = ()) -> Iterator[None]:
        """Layers made inside are this node's; `weights` are the slots that it reads."""
        self._node, self._weights = node, tuple(weights)
        try:
            yield
        finally:
            self._node, self._weights = None, ()

    def dtype(self, dtype: DType) -> Any:
        """The trt.DataType of one of ours."""
        if dtype not in DATA_TYPES:
            raise BuildError(f"{self._where}: TensorRT has no tensors of {dtype}")
        return getattr(self.flavour.module.DataType, DATA_TYPES[dtype])

    def enum(self, kind: str, name: str) -> Any:
        """A member of one of TensorRT's enumerations."""
        return getattr(getattr(self.flavour.module, kind), name)

    def layer(self, method: str, *arguments: Any) -> Layer:
        """`network.add_<method>(...)`, checked but for what is set on it afterwards."""
        try:
            made = getattr(self.raw, f"add_{method}")(*arguments)
        except (TypeError, RuntimeError, ValueError) as error:
            raise self._error(method, str(error).splitlines()[0]) from error
        return self._named(made, method)

    def conditional(
        self,
        condition: Tensor,
        operands: Sequence[Tensor],
        if_true: Callable[..., Tensor],
        if_false: Callable[..., Tensor],
    ) -> Tensor:
        """What one of two functions makes of the operands, as a bool [] says when a step runs.

        All that the functions read must be among the operands: TensorRT evaluates lazily only what
        depends on nothing else.
        """
        (made,) = self.conditionals(
            condition, operands, lambda *x: (if_true(*x),), lambda *x: (if_false(*x),)
        )
        return made

    def conditionals(
        self,
        condition: Tensor,
        operands: Sequence[Tensor],
        if_true: Callable[..., Sequence[Tensor]],
        if_false: Callable[..., Sequence[Tensor]],
    ) -> list[Tensor]:
        """The same of functions that make several tensors each, as many as the other."""
        chosen = self.raw.add_if_conditional()
        if chosen is None:
            raise self._error("if_conditional", "TensorRT gives none")
        chosen.name = self._layer_name("if_conditional")
        self._named(chosen.set_condition(condition), "condition")
        inside = [
            self.output(self._named(chosen.add_input(x), "conditional_input")) for x in operands
        ]
        results = zip(if_true(*inside), if_false(*inside), strict=True)
        return [
            self.output(self._named(chosen.add_output(*pair), "conditional_output"))
            for pair in results
        ]

    def _named(self, made: Layer, method: str) -> Layer:
        """A layer that was just made, checked, with its name and what it is for."""
        if made is None:
            raise self._error(method, "TensorRT takes no such operands")
        made.name = self._layer_name(method)
        self._check(method)
        if self._node is not None:
            about = {
                "path": self._node.path,
                "op": self._node.op.name,
                "source": self._node.source,
                **({"weights": list(self._weights)} if self._weights else {}),
            }
            self._metadata(made, about)
        return made

    def set(self, layer: Layer, attribute: str, value: Any) -> None:
        """Set an attribute and read it back: setters only log what they refuse."""
        what = f"{type(layer).__name__}.{attribute}"
        try:
            setattr(layer, attribute, value)
            found = getattr(layer, attribute)
        except (TypeError, RuntimeError, ValueError) as error:
            raise self._error(what, str(error).splitlines()[0]) from error
        self._check(what)
        if not _same(found, value):
            raise self._error(what, f"set to {_told(value)}, it is {_told(found)}")

    def set_input(self, layer: Layer, index: int, tensor: Tensor) -> None:
        """An operand that a layer's `add_` has no place for."""
        layer.set_input(index, tensor)
        what = f"{type(layer).__name__}.set_input({index})"
        self._check(what)
        if not _same(layer.get_input(index), tensor):
            raise self._error(what, "the operand was not taken")

    def output(self, layer: Layer, index: int = 0) -> Tensor:
        """An output of a layer that is complete; its shape and type must be known by now."""
        tensor = layer.get_output(index)
        self.check_tensor(tensor, type(layer).__name__)
        return tensor

    def check_tensor(self, tensor: Tensor, what: str) -> None:
        """Raise `BuildError` unless TensorRT can infer the shape of this tensor."""
        try:
            shape = None if tensor is None else tuple(tensor.shape)
        except (RuntimeError, ValueError) as error:
            raise self._error(what, str(error).splitlines()[0]) from error
        self._check(what)
        if shape is None:
            raise self._error(what, "it has no such output")

    def add(self, method: str, *arguments: Any) -> Tensor:
        """The one output of a layer that needs nothing set."""
        return self.output(self.layer(method, *arguments))

    def input(self, name: str, dtype: DType, shape: Sequence[int]) -> Tensor:
        """A network input; -1 where a profile says the size."""
        tensor = self.raw.add_input(name, self.dtype(dtype), tuple(shape))
        if tensor is None:
            raise self._error("input", f"TensorRT takes no input {name!r} {dtype}{list(shape)}")
        self.check_tensor(tensor, f"input {name!r}")
        return tensor

    def mark_output(self, tensor: Tensor, name: str) -> None:
        tensor.name = name
        self.raw.mark_output(tensor)
        self._check(f"output {name!r}")
        if tensor.name != name or not tensor.is_network_output:
            raise self._error("output", f"{name!r} was not taken")

    def constant(
        self,
        array: Array,
        dtype: DType,
        shape: Sequence[int] | None = None,
        *,
        refit_as: str | None = None,
    ) -> Tensor:
        """A constant over the bytes of an array, which must not change until the build is done.

        i4 comes packed two a byte along the last axis, with the unpacked `shape`. `refit_as`: the
        name under which a plan can be given other values for it.
        """
        shape = tuple(array.shape if shape is None else shape)
        array = np.ascontiguousarray(array)  # gives scalars an axis
        self.keep(array)
        count = int(np.prod(shape, dtype=np.int64))
        weights = self.flavour.module.Weights(self.dtype(dtype), array.ctypes.data, count)
        layer = self.layer("constant", shape, weights)
        self.constants[layer.name] = array
        if refit_as is not None:
            self._mark_refittable(weights, refit_as)
        return self.output(layer)

    def _mark_refittable(self, weights: Any, name: str) -> None:
        for taken in (
            self.raw.set_weights_name(weights, name),
            self.raw.mark_weights_refittable(name),
            self.raw.are_weights_marked_refittable(name),
        ):
            if not taken:
                raise self._error("constant", f"{name!r} cannot be made refittable")
        self.refittable.append(name)

    def keep(self, held: object) -> None:
        """For as long as the network lives, which may only refer to it."""
        self._kept.append(held)

    def scalar(self, value: float, dtype: DType, rank: int) -> Tensor:
        """One number as a tensor of `rank` axes of size 1; one layer however often it is used."""
        key = (value, dtype, rank)
        if key not in self._scalars:
            self._scalars[key] = self.constant(np.full((1,) * rank, value, dtype.numpy), dtype)
        return self._scalars[key]

    def indices(self, *values: int) -> Tensor:
        """i64 [n], to calculate with shapes."""
        return self.constant(np.array(values, np.int64), DType.I64)

    @property
    def _where(self) -> str:
        return self._node.where if self._node is not None else "the network"

    def _error(self, what: str, reason: str) -> BuildError:
        words = self.log.words(self._seen)
        op = f"{self._node.op.name}: " if self._node is not None else ""
        weights = f" with {', '.join(self._weights)}" if self._weights else ""
        self._seen = len(self.log.errors)
        return BuildError(
            f"{self._where}: {op}{what}{weights}: {reason}"
            + (f"\n  {self.flavour.label} says\n{words}" if words else "")
        )

    def _check(self, what: str) -> None:
        if len(self.log.errors) > self._seen:
            raise self._error(what, "TensorRT logged an error")

    def _layer_name(self, method: str) -> str:
        place = f"{self._node.path}:{self._node.op.name}" if self._node is not None else "network"
        name, number = f"{place}.{method}", 1
        while name in self._names:
            number += 1
            name = f"{place}.{method}.{number}"
        self._names.add(name)
        return name

    def _metadata(self, layer: Layer, about: dict[str, Any]) -> None:
        layer.metadata = json.dumps(about)


def annotate(layer: Layer, **more: Any) -> None:
    """Add to what a layer's metadata say."""
    about = json.loads(layer.metadata) if layer.metadata else {}
    layer.metadata = json.dumps({**about, **more})


def _same(found: Any, wanted: Any) -> bool:
    if hasattr(wanted, "is_network_input"):  # an ITensor
        return found is not None and found.name == wanted.name
    if isinstance(wanted, int | float | bool | str) or hasattr(wanted, "name"):
        return bool(found == wanted)
    # Dims and Permutations, the latter of which come back with zeros behind.
    return found is not None and tuple(found)[: len(wanted)] == tuple(wanted)


def _told(value: Any) -> str:
    if hasattr(value, "is_network_input"):
        return f"the tensor {value.name!r}"
    return repr(tuple(value)) if isinstance(value, tuple | list) else str(value)
