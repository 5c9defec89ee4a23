"""Ops by which the ranks of a mesh exchange tensors.

Their NumPy definitions need a `Communicator`, which the engine that runs the graph provides.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from paddock.graph.dtype import Array, DType
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.tensor import Shape, Tensor, TensorType, fixed


class Communicator(Protocol):
    """What one rank says to its neighbours. Every call is made by all that it concerns.

    Arrays that come back are C-contiguous.
    """

    def all_reduce(self, x: Array) -> Array:
        """The sum over the tensor-parallel ranks."""

    def all_gather(self, x: Array) -> Array:
        """The tensor-parallel ranks' arrays, joined along the last axis in rank order."""

    def reduce_scatter(self, x: Array) -> Array:
        """This rank's part, along the last axis, of the sum over the tensor-parallel ranks."""

    def broadcast(self, x: Array) -> Array:
        """The first tensor-parallel rank's array."""

    def send(self, x: Array) -> None:
        """To the same tensor-parallel rank of the next stage."""

    def receive(self, x: Array) -> None:
        """Fill x from the same tensor-parallel rank of the stage before."""


@dataclass(frozen=True)
class Collective(Op, abstract=True):
    """An op that is not a function of this rank's operands alone."""

    has_effects: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        return x

    def exchange(self, communicator: Communicator, *inputs: Array) -> Array:
        """What `compute` is for other ops."""
        raise GraphError(f"{self.name} declares no exchange()")


@dataclass(frozen=True)
class AllReduce(Collective):
    """Sum over the tensor-parallel ranks."""

    is_by_rows: ClassVar[bool] = True

    def exchange(self, communicator: Communicator, *inputs: Array) -> Array:
        return communicator.all_reduce(inputs[0])


@dataclass(frozen=True)
class AllGather(Collective):
    """Join the tensor-parallel ranks' tensors along the last axis."""

    ranks: int

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if self.ranks < 1:
            raise GraphError(f"a mesh has no {self.ranks} ranks")
        return x.with_shape(*x.shape[:-1], x.size(-1) * self.ranks)

    def exchange(self, communicator: Communicator, *inputs: Array) -> Array:
        return communicator.all_gather(inputs[0])


@dataclass(frozen=True)
class ReduceScatter(Collective):
    """Sum over the tensor-parallel ranks, of which each keeps its part of the last axis."""

    ranks: int

    is_by_rows: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if self.ranks < 1:
            raise GraphError(f"a mesh has no {self.ranks} ranks")
        if x.size(-1) % self.ranks:
            raise GraphError(f"the last axis of {x} does not divide into {self.ranks} equal parts")
        return x.with_shape(*x.shape[:-1], x.size(-1) // self.ranks)

    def exchange(self, communicator: Communicator, *inputs: Array) -> Array:
        return communicator.reduce_scatter(inputs[0])


@dataclass(frozen=True)
class Broadcast(Collective):
    """The first tensor-parallel rank's tensor; the others' only lend their shape."""

    is_by_rows: ClassVar[bool] = True

    def exchange(self, communicator: Communicator, *inputs: Array) -> Array:
        return communicator.broadcast(inputs[0])


@dataclass(frozen=True)
class Send(Collective):
    """Hand x to the next pipeline stage; the value is x."""

    def exchange(self, communicator: Communicator, *inputs: Array) -> Array:
        communicator.send(inputs[0])
        return inputs[0]


@dataclass(frozen=True)
class Receive(Collective):
    """What the stage before sent. The operand only lends its shape: `like` is [tokens, ...]."""

    dtype: DType
    tail: Shape

    def infer(self, like: TensorType) -> TensorType:
        if like.rank < 1 or any(isinstance(n, int) and n < 1 for n in self.tail):
            raise GraphError(f"no tensor has the first axis of {like} and behind it {self.tail}")
        return TensorType(self.dtype, (like.shape[0], *self.tail))

    def exchange(self, communicator: Communicator, *inputs: Array) -> Array:
        x = np.empty((len(inputs[0]), *fixed(self.tail)), self.dtype.numpy)
        communicator.receive(x)
        return x


def all_reduce(x: Tensor) -> Tensor:
    return AllReduce()(x)


def all_gather(x: Tensor, ranks: int) -> Tensor:
    return AllGather(ranks)(x)


def reduce_scatter(x: Tensor, ranks: int) -> Tensor:
    return ReduceScatter(ranks)(x)


def broadcast(x: Tensor) -> Tensor:
    return Broadcast()(x)


def send(x: Tensor) -> Tensor:
    return Send()(x)


def receive(like: Tensor, dtype: DType, tail: Shape) -> Tensor:
    """A tensor [first axis of `like`, *tail] from the stage before."""
    return Receive(dtype, tail)(like)
