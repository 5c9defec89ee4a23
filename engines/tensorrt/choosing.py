"""Choosing the tokens of a step where its logits are, and handing them to the next one there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddock.engines.choosing import CHOICE_TYPES
from paddock.engines.padded_step import PaddedCall
from paddock.engines.protocol import BuildError, Choices
from paddock.engines.tensorrt.device import Buffer
from paddock.graph import Array

_ALIGNMENT = 16  # bytes, of each array of choices


def rows_of_calls(calls: Sequence[PaddedCall]) -> list[Array]:
    """For each call, i64 [R]: the step's row of logits that each of its own is.

    Raises `BuildError` where two rows are of the same token, of which one is chosen.
    """
    found = []
    for call in calls:
        if len(call.step_rows) and len(call.step_rows) != len(call.logit_rows):
            raise BuildError("two rows of a step whose tokens are chosen are of the same token")
        rows = np.empty(len(call.step_rows), np.int64)
        rows[call.from_rows] = call.step_rows
        found.append(rows)
    return found


class PackedChoices:
    """Where the arrays of choices of so many rows lie, one behind the other."""

    def __init__(self, rows: int) -> None:
        self.nbytes = 0
        self._places: dict[str, tuple[int, np.dtype[np.generic]]] = {}
        for name, dtype in CHOICE_TYPES.items():
            self._places[name] = self.nbytes, dtype
            self.nbytes += -(-rows * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT

    def write(self, memory: Array, choices: Choices, order: Array) -> None:
        """Into host bytes, the rows in this order."""
        for name, (at, dtype) in self._places.items():
            view = memory[at : at + len(order) * dtype.itemsize].view(dtype)
            view[:] = getattr(choices, name)[order]

    def addresses(self, buffer: Buffer, row: int) -> list[int]:
        """Of each array from a row on, where all lie in a buffer of the device."""
        return [buffer.address + at + row * dtype.itemsize for at, dtype in self._places.values()]
