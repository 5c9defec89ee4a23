"""A step's arrays in one piece of memory, so that one copy brings them to the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from paddock.engines.choosing import CHOICE_TYPES
from paddock.engines.cuda.buckets import Bucket
from paddock.engines.protocol import Choices, StepInputs
from paddock.graph import Array
from paddock.graph.ops import Input
from paddock.graph.tensor import TABLE, Dim

ALIGNMENT = 16  # bytes
# Padding: sequences of no tokens behind the last one, whose starts are where that one ends.
_REPEAT_LAST = (
    "sequence_starts",
    "block_starts",
    "source_starts",
    "source_table_starts",
    "image_starts",
)


class StepLayout:
    """Where each array of a bucket's steps lies: the graph's inputs, the choices, the block table.

    The table is last, because most of its room is seldom used: `pack` says how much is to be
    copied.
    """

    def __init__(self, inputs: Sequence[Input], bucket: Bucket, table: int) -> None:
        self._sizes = bucket.sizes(table)
        self._rows = bucket.rows
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self.nbytes = 0
        for op in sorted(inputs, key=lambda op: TABLE in op.shape):
            if TABLE in op.shape:
                self._add_choices()
            self._add(op.key, tuple(self._size(d) for d in op.shape), op.dtype.numpy)
        self._add_choices()
        self._tables = [op.key for op in inputs if TABLE in op.shape]

    def _size(self, dim: int | Dim) -> int:
        return dim if isinstance(dim, int) else self._sizes[dim]

    def _add_choices(self) -> None:
        if "slots" not in self._places:
            for name, dtype in CHOICE_TYPES.items():
                self._add(name, (self._rows,), dtype)

    def _add(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        at = -(-self.nbytes // ALIGNMENT) * ALIGNMENT
        self._places[name] = at, shape, dtype
        self.nbytes = at + prod(shape) * dtype.itemsize

    def views(self, memory: Any) -> dict[str, Any]:
        """Each array as a view of device or host bytes."""
        return {
            name: memory[at : at + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for name, (at, shape, dtype) in self._places.items()
        }

    def pack(self, memory: Array, step: StepInputs, choices: Choices) -> int:
        """Write a step into host bytes, padded; returns how many of them are to be copied."""
        views = self.views(memory)
        used = self.nbytes
        for name, view in views.items():
            if name in CHOICE_TYPES:
                array = getattr(choices, name)
                fill: Any = -1 if name == "slots" else 0
            else:
                array = getattr(step, name)
                fill = -1 if name == "image_rows" else 0
                if name in _REPEAT_LAST:
                    fill = array[-1]
            count = len(array)
            view[:count] = array
            if name in self._tables:
                used = self._places[name][0] + count * view.itemsize
            else:
                view[count:] = fill
        return used

    def places(self) -> Mapping[str, int]:
        """Byte offsets, for tests."""
        return {name: at for name, (at, _, _) in self._places.items()}
