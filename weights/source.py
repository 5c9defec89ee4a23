"""Where a value comes from: checkpoint tensors under slicing, stacking, transposition, addition.

A source knows its shape from headers alone. `read(box)` copies the bytes of that box and no
others; `boxes()` says what it takes of which tensors, which is what the proof adds up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paddock.graph import Array, DType
from paddock.weights.safetensors_file import Box, TensorInfo


class Source(Protocol):
    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole value."""

    def read(self, box: Box) -> Array:
        """The elements in `box`, as the checkpoint has them (f32 where they are computed)."""

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        """What `box` of this value (all of it by default) takes of each tensor."""

    def __str__(self) -> str:
        """In a reader's terms, e.g. `model.embed_tokens.weight`."""


@dataclass(frozen=True)
class Stored:
    """One tensor as it is."""

    tensor: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def read(self, box: Box) -> Array:
        return self.tensor.read(box)

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        yield self.tensor, self.tensor.whole if box is None else box

    def __str__(self) -> str:
        return self.tensor.name


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of another source."""

    of: Source
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.of.shape[1:])

    def read(self, box: Box) -> Array:
        return self.of.read(self._within(box))

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        return self.of.boxes(self._within(whole(self.shape) if box is None else box))

    def _within(self, box: Box) -> Box:
        (start, stop), *rest = box
        return ((self.start + start, self.start + stop), *rest)

    def __str__(self) -> str:
        return f"{self.of}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class HeadRows:
    """Of each of `groups` equal groups of rows, `count` rows from `first` on."""

    of: Source
    groups: int
    first: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.groups * self.count, *self.of.shape[1:])

    def read(self, box: Box) -> Array:
        pieces = [self.of.read(piece) for piece in self._within(box)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        for piece in self._within(whole(self.shape) if box is None else box):
            yield from self.of.boxes(piece)

    def _within(self, box: Box) -> list[Box]:
        (start, stop), *rest = box
        step = self.of.shape[0] // self.groups
        pieces: list[Box] = []
        while start < stop:
            group, row = divmod(start, self.count)
            taken = min(self.count - row, stop - start)
            at = group * step + self.first + row
            pieces.append(((at, at + taken), *rest))
            start += taken
        return pieces or [((0, 0), *rest)]

    def __str__(self) -> str:
        step = self.of.shape[0] // self.groups
        return f"{self.of}[{self.first}:{self.first + self.count} of every {step}]"


@dataclass(frozen=True)
class Transposed:
    """Another source, its last two axes exchanged."""

    of: Source

    @property
    def shape(self) -> tuple[int, ...]:
        *before, rows, columns = self.of.shape
        return (*before, columns, rows)

    def read(self, box: Box) -> Array:
        *before, rows, columns = box
        return self.of.read((*before, columns, rows)).swapaxes(-1, -2)

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        if box is None:
            return self.of.boxes()
        *before, rows, columns = box
        return self.of.boxes((*before, columns, rows))

    def __str__(self) -> str:
        return f"transpose({self.of})"


@dataclass(frozen=True)
class Stacked:
    """Sources of one shape along a new first axis."""

    of: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.of), *self.of[0].shape)

    def read(self, box: Box) -> Array:
        (start, stop), *rest = box
        return np.stack([source.read(tuple(rest)) for source in self.of[start:stop]])

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        (start, stop), *rest = whole(self.shape) if box is None else box
        for source in self.of[start:stop]:
            yield from source.boxes(tuple(rest))

    def __str__(self) -> str:
        return f"stack({self.of[0]}, ... {len(self.of)} in all)"


@dataclass(frozen=True)
class Folded:
    """The rows of another source as `count` equal runs: [count, rows / count, ...]."""

    of: Source
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        rows, *rest = self.of.shape
        return (self.count, rows // self.count, *rest)

    def read(self, box: Box) -> Array:
        (start, stop), (first, last), *rest = box
        runs = [self.of.read(piece) for piece in self._within(box)]
        if not runs:
            runs = [self.of.read(((0, 0), *rest))]
        return np.concatenate(runs).reshape(stop - start, last - first, *runs[0].shape[1:])

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        for piece in self._within(whole(self.shape) if box is None else box):
            yield from self.of.boxes(piece)

    def _within(self, box: Box) -> list[Box]:
        (start, stop), (first, last), *rest = box
        rows = self.shape[1]
        if (first, last) == (0, rows):
            return [((start * rows, stop * rows), *rest)] if start < stop else []
        return [((i * rows + first, i * rows + last), *rest) for i in range(start, stop)]

    def __str__(self) -> str:
        return f"fold({self.of}, {self.count})"


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What four bits stand for: a sign, two of exponent, one of mantissa."""
GROUP = 32  # numbers that share a scale


@dataclass(frozen=True)
class Microscaled:
    """MXFP4 [experts, rows, groups x 32] in f32: four bits a number, the low half of a byte first,
    times a power of two for each group, whose byte is the exponent plus 127.

    OCP Microscaling Formats Specification 1.0, sections 5.2 and 5.3.
    """

    blocks: Stored  # [experts, rows, groups, 16]
    scales: Stored  # [experts, rows, groups]

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, groups = self.scales.shape
        return experts, rows, groups * GROUP

    def read(self, box: Box) -> Array:
        blocks, scales = self._within(box)
        packed = self.blocks.read(blocks)
        exponents = self.scales.read(scales).astype(np.int32) - 127
        numbers = np.stack([FP4[packed & 0xF], FP4[packed >> 4]], -1)
        scaled = np.ldexp(numbers.reshape(*exponents.shape, GROUP), exponents[..., None])
        start, stop = box[2]
        before = start - scales[2][0] * GROUP
        return scaled.reshape(*exponents.shape[:2], -1)[..., before : before + stop - start]

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        blocks, scales = self._within(whole(self.shape) if box is None else box)
        yield from self.blocks.boxes(blocks)
        yield from self.scales.boxes(scales)

    def _within(self, box: Box) -> tuple[Box, Box]:
        experts, rows, (start, stop) = box
        groups = (start // GROUP, -(-stop // GROUP))
        return (experts, rows, groups, (0, GROUP // 2)), (experts, rows, groups)

    def __str__(self) -> str:
        return f"mxfp4({self.blocks}, {self.scales})"


@dataclass(frozen=True)
class Joined:
    """The rows of several sources, one after another."""

    of: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(source.shape[0] for source in self.of), *self.of[0].shape[1:])

    def read(self, box: Box) -> Array:
        pieces = [source.read(piece) for source, piece in self._within(box)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        for source, piece in self._within(whole(self.shape) if box is None else box):
            yield from source.boxes(piece)

    def _within(self, box: Box) -> list[tuple[Source, Box]]:
        (start, stop), *rest = box
        pieces: list[tuple[Source, Box]] = []
        before = 0
        for source in self.of:
            first, last = max(start - before, 0), min(stop - before, source.shape[0])
            if first < last:
                pieces.append((source, ((first, last), *rest)))
            before += source.shape[0]
        return pieces or [(self.of[0], ((0, 0), *rest))]

    def __str__(self) -> str:
        return f"join({', '.join(map(str, self.of))})"


@dataclass(frozen=True)
class Plus:
    """Another source and a constant, added in f32: a norm's 1 + w loses bits in half precision."""

    of: Source
    constant: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def read(self, box: Box) -> Array:
        return cast(self.of.read(box), DType.F32) + np.float32(self.constant)

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        return self.of.boxes(box)

    def __str__(self) -> str:
        return f"{self.of} + {self.constant:g}"


@dataclass(frozen=True)
class UnitLength:
    """Another source of two axes, each row divided by its Euclidean length, in f32."""

    of: Source

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def read(self, box: Box) -> Array:
        rows, (start, stop) = box
        whole_rows = cast(self.of.read((rows, (0, self.shape[1]))), DType.F32)
        lengths = np.sqrt(np.sum(whole_rows * whole_rows, axis=1, keepdims=True))
        return (whole_rows / np.maximum(lengths, np.float32(1e-12)))[:, start:stop]

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        return self.of.boxes(box)

    def __str__(self) -> str:
        return f"{self.of} with rows of length 1"


@dataclass(frozen=True)
class NegativeExponential:
    """Minus the exponential of another source, in f32."""

    of: Source

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def read(self, box: Box) -> Array:
        negative: Array = -np.exp(cast(self.of.read(box), DType.F32))
        return negative

    def boxes(self, box: Box | None = None) -> Iterator[tuple[TensorInfo, Box]]:
        return self.of.boxes(box)

    def __str__(self) -> str:
        return f"-exp({self.of})"


def whole(shape: Sequence[int]) -> Box:
    return tuple((0, size) for size in shape)


def cast(array: Array, dtype: DType) -> Array:
    """The array in another type, rounded to nearest; the array itself where it has that type."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported by slot
        return array.astype(dtype.numpy, copy=False)
