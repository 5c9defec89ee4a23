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
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of its windows."""
    columns: int = 1
    """Of its patches."""
    areas: tuple[int, ...] = ()
    """Patches of each."""

    @property
    def made(self) -> int:
        """Rows that the model makes of it."""
        return self.outputs or len(self.patches)

    @cached_property
    def digest(self) -> bytes:
        """Images with one digest are one image: 256 bits of all that the model is fed."""
        found = hashlib.blake2b(f"{self.grid} {self.columns}".encode(), digest_size=32)
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
    """An image of f32 [channels, height, width]: areas row by row, windows row by row in each, and
    patches row by row in each of these."""
    side, window = form.patch_size, form.window
    channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    grid = rows // window, columns // window
    cut = pixels[:, : rows * side, : columns * side]
    cut = cut.reshape(channels, grid[0], window, side, grid[1], window, side)
    patches = cut.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, window**2, channels, 1, side * side)
    places = np.arange(rows * columns).reshape(grid[0], window, grid[1], window)
    order, areas = _areas(*grid, form.area)
    patches = patches.repeat(form.frames, axis=3)[order].reshape(rows * columns, -1)
    positions = places.transpose(0, 2, 1, 3).reshape(-1, window**2)[order].reshape(-1)
    made = np.argsort(order)
    if form.class_token:
        patches = np.pad(patches, ((1, 0), (0, 1)))
        patches[0, -1] = 1
        positions = np.arange(len(patches))
        made = np.arange(len(patches))
    return PreparedImage(
        np.ascontiguousarray(patches, np.float32),
        positions,
        made[form.first_row :],
        form.whole,
        len(made),
        grid,
        columns,
        tuple(size * window**2 for size in areas),
    )


def _areas(rows: int, columns: int, side: int | None) -> tuple[Array, list[int]]:
    """Windows area by area, and how many each has; those at the right and the bottom have less."""
    numbers = np.arange(rows * columns).reshape(rows, columns)
    if side is None:
        return numbers.reshape(-1), [rows * columns]
    cut = [
        numbers[top : top + side, left : left + side].reshape(-1)
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]
    return np.concatenate(cut), [len(area) for area in cut]


def packed(images: Sequence[PreparedImage], patch_size: int) -> dict[str, Array]:
    """A step's arrays of the images that come with it; patches have `patch_size` numbers."""
    if not images:
        none, starts = np.zeros(0, np.int64), np.zeros(2, np.int32)
        return {
            "image_patches": np.zeros((0, patch_size), np.float32),
            "image_positions": none,
            "image_starts": starts,
            "image_patch_rows": none,
            "image_patch_columns": none,
            "image_area_starts": starts,
        }
    return {
        "image_patches": np.concatenate([image.patches for image in images]),
        "image_positions": np.concatenate([image.positions for image in images]),
        "image_starts": np.cumsum([0, *(len(i.patches) for i in images)]).astype(np.int32),
        "image_patch_rows": np.concatenate([i.positions // i.columns for i in images]),
        "image_patch_columns": np.concatenate([i.positions % i.columns for i in images]),
        "image_area_starts": np.cumsum([0, *(n for i in images for n in i.areas)]).astype(np.int32),
    }


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
