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
    """An image of f32 [channels, height, width], its patches row by row."""
    side = form.patch_size
    channels, height, width = pixels.shape
    cut = pixels[:, : height // side * side, : width // side * side]
    grid = cut.reshape(channels, height // side, side, width // side, side)
    patches = grid.transpose(1, 3, 0, 2, 4).reshape(-1, channels * side * side)
    if form.class_token:
        patches = np.pad(patches, ((1, 0), (0, 1)))
        patches[0, -1] = 1
    return PreparedImage(
        np.ascontiguousarray(patches, np.float32),
        np.arange(len(patches)),
        np.arange(form.first_row, len(patches)),
    )


def content(images: Sequence[PlacedImage], begin: int, end: int) -> bytes:
    """What tokens `begin : end` of a prompt stand for beside themselves, for prefix hashes."""
    found = [
        (image.start - begin).to_bytes(8, "little", signed=True) + image.image.digest
        for image in images
        if image.start < end and begin < image.stop
    ]
    return b"".join(found)


def within(images: Sequence[PlacedImage], begin: int, end: int) -> list[PlacedImage]:
    """Those that some of the tokens `begin : end` stand for."""
    return [image for image in images if image.start < end and begin < image.stop]
