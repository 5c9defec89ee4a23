"""An image as a step has it, and its place in a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paddock.graph.dtype import Array
from paddock.models.images import ImageForm


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """What the model is fed for one image, and what it reads of what it makes of it."""

    patches: Array  # f32 [patches, form.row_size]
    positions: Array  # i64 [patches]
    rows: Array  # i64 [tokens]: what each of its tokens stands for, counted in the image
    whole: bool = False
    """Its tokens see each other: they are in one step."""
    outputs: int = 0
    """Rows that the model makes of it; 0: as many as patches."""

    @property
    def made(self) -> int:
        """Rows that the model makes of it."""
        return self.outputs or len(self.patches)

    @cached_property
    def digest(self) -> bytes:
        """Images with one digest are one image: 256 bits of all that the model is fed."""
        found = hashlib.blake2b(digest_size=32)
        for array in (self.patches, self.positions, self.rows):
            found.update(str(array.shape).encode())
            found.update(np.ascontiguousarray(array).data)
        return found.digest()


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """An image whose tokens in a prompt are `start : stop`."""

    image: PreparedImage
    start: int

    @property
    def stop(self) -> int:
        return self.start + len(self.image.rows)


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """A prompt with images: token ids, in which those of each image are in place."""

    token_ids: Sequence[int]
    images: Sequence[PlacedImage]


def prepare(pixels: Array, form: ImageForm) -> PreparedImage:
    """An image of f32 [channels, height, width]: windows row by row, patches row by row in each."""
    side, window = form.patch_size, form.window
    channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    cut = pixels[:, : rows * side, : columns * side]
    grid = cut.reshape(channels, rows // window, window, side, columns // window, window, side)
    patches = grid.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, channels * side * side)
    places = np.arange(rows * columns).reshape(rows // window, window, columns // window, window)
    positions = places.transpose(0, 2, 1, 3).reshape(-1)
    if form.class_token:
        patches = np.pad(patches, ((1, 0), (0, 1)))
        patches[0, -1] = 1
        positions = np.arange(len(patches))
    made = len(patches) // window**2
    return PreparedImage(
        np.ascontiguousarray(patches, np.float32),
        positions,
        np.arange(form.first_row, made),
        form.whole,
        made,
    )


def content(images: Sequence[PlacedImage], begin: int, end: int) -> bytes:
    """What tokens `begin : end` of a prompt stand for beside themselves, for prefix hashes."""
    found = [
        (image.start - begin).to_bytes(8, "little", signed=True) + image.image.digest
        for image in within(images, begin, end)
    ]
    return b"".join(found)


def within(images: Sequence[PlacedImage], begin: int, end: int) -> list[PlacedImage]:
    """Those that some of the tokens `begin : end` stand for."""
    return [image for image in images if image.start < end and begin < image.stop]
