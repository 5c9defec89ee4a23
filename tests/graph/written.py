"""Tensors and types from the notation that dumps use: `f32[tokens, 4, 16]`."""

from __future__ import annotations

from paddock.graph import DType, Tensor, TensorType
from paddock.graph.ops import input_tensor
from paddock.graph.tensor import Dim


def type_of(text: str) -> TensorType:
    dtype, _, axes = text.rstrip("]").partition("[")
    sizes = [a.strip() for a in axes.split(",") if a.strip()]
    return TensorType(DType(dtype), tuple(int(a) if a.isdigit() else Dim(a) for a in sizes))


def tensor(text: str, name: str = "x") -> Tensor:
    """An input of the current graph."""
    kind = type_of(text)
    return input_tensor(name, kind.dtype, *kind.shape)


def tensors(*texts: str) -> list[Tensor]:
    return [tensor(text, f"x{i}") for i, text in enumerate(texts)]
