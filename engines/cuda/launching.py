"""What the lowerings of all ops share: what they are told, and how large blocks and grids are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.cuda.device import Instruction, StoredWeight
from paddock.graph import Op
from paddock.graph.ops import ACTIVATIONS
from paddock.graph.tensor import TensorType

if TYPE_CHECKING:
    from paddock.engines.cuda.gpu import GPU

Room = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and type of a piece of scratch memory."""
Emit = Callable[["GPU", Instruction], None]

PROCESSORS = 132  # of a Hopper GPU; other numbers change how finely attention is cut, no more
MANY_ROWS = 384  # beyond, a block for each row fills the GPU
# `activate` has the same numbers.
NUMBER = {kind: i for i, kind in enumerate(ACTIVATIONS)}


@dataclass(frozen=True)
class Sized:
    """What decides about an op's kernels: its operands with all sizes known."""

    op: Op
    types: tuple[TensorType, ...]
    weight: StoredWeight | None  # of a product, where it is not dense
    singles: int
    """At most so many leading sequences have one token each."""


def block_of(size: int) -> int:
    """Threads for a row of so many elements."""
    return max(32, min(1024, ceil(size / 8 / 32) * 32))


def held_rows(rows: int, size: int) -> tuple[int, int]:
    """Threads of a block that holds a row of so many elements, and how often each reads 8 of them.

    Of many long rows a thread has several reads on its way; few are spread over more threads.
    """
    turns = max(1, ceil(size / 8192), min(4, size // 1024) if rows > MANY_ROWS else 1)
    return max(32, ceil(size / 8 / turns / 32) * 32), turns


def grid_of(gpu: GPU, elements: int) -> tuple[int]:
    """Blocks of 256 threads that go over so many elements."""
    return (max(1, min(ceil(elements / 256), 8 * gpu.processors)),)
