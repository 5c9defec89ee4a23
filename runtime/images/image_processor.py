"""From an image to the numbers that a tower was trained on, as preprocessor_config.json says.

The steps are those of transformers' image processors, computed with the same library (Pillow).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from paddock.graph.dtype import Array
from paddock.graph.errors import nearest
from paddock.runtime.errors import RequestError
from paddock.runtime.strict_json import TokenizerError, first_problem, read_object

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "preprocessor_config.json"
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_LONGEST_SIDE = 2**14
Side = Annotated[int, Field(gt=0, le=_LONGEST_SIDE)]
Channels = Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=4)]


class Sizes(BaseModel):
    """`height` and `width`, or one edge to which the other is kept in proportion.

    Qwen2-VL's edges are numbers of pixels, the least and the most of an image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    height: Side | None = None
    width: Side | None = None
    shortest_edge: Annotated[int, Field(gt=0, le=2**28)] | None = None
    longest_edge: Annotated[int, Field(gt=0, le=2**28)] | None = None


@dataclass(frozen=True)
class Tiles:
    """What an image is fed as, f32 [channels, height, width] each.

    Where it was cut there are `rows` x `columns` of it, row by row, and then all of it in one.
    """

    pixels: Sequence[Array]
    rows: int = 0
    columns: int = 0


def _square(value: Any) -> Any:
    return {"height": value, "width": value} if isinstance(value, int) else value


class ImageProcessor(BaseModel):
    """Resize, crop, rescale and normalise, each where the file says so."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    do_resize: bool = True
    size: Sizes
    resample: int = Field(3, ge=0, le=5)  # of Pillow: 2 bilinear, 3 bicubic
    do_center_crop: bool = False
    crop_size: Annotated[Sizes, BeforeValidator(_square)] | None = None
    do_rescale: bool = True
    rescale_factor: float = Field(1 / 255, gt=0)
    do_normalize: bool = True
    image_mean: Channels
    image_std: Channels

    steps: ClassVar[frozenset[str]] = frozenset({"do_convert_rgb"})
    """Beside the fields: what is done in any case."""

    @model_validator(mode="after")
    def _has_sizes(self) -> Self:
        crop = self.crop_size
        if self.do_center_crop and (crop is None or not crop.height or not crop.width):
            raise ValueError("do_center_crop is true, and crop_size has no height and width")
        if not (self.size.shortest_edge or (self.size.height and self.size.width)):
            raise ValueError("size has neither height and width nor shortest_edge")
        return self._with_short_edges()

    def _with_short_edges(self) -> Self:
        for edge in (self.size.shortest_edge, self.size.longest_edge):
            if edge is not None and edge > _LONGEST_SIDE:
                raise ValueError(f"size has an edge of {edge} pixels, {_LONGEST_SIDE} at most")
        return self

    def tiles(self, image: Image) -> Tiles:
        """What an image in RGB is fed as."""
        if self.do_resize:
            image = self._resize(image, *self.resized(image.height, image.width))
        return Tiles([self._numbers(image)])

    def _resize(self, image: Image, height: int, width: int) -> Image:
        from PIL.Image import Resampling

        return image.resize((width, height), Resampling(self.resample))

    def _numbers(self, image: Image) -> Array:
        """f32 [channels, height, width]."""
        pixels: Array = np.asarray(image).transpose(2, 0, 1)
        if self.do_center_crop and self.crop_size is not None:
            pixels = _cropped(pixels, self.crop_size.height or 1, self.crop_size.width or 1)
        if self.do_rescale:
            pixels = (pixels * np.float64(self.rescale_factor)).astype(np.float32)
        pixels = pixels.astype(np.float32)
        if self.do_normalize:
            mean, std = (
                np.asarray(v, np.float32)[:, None, None] for v in (self.image_mean, self.image_std)
            )
            pixels = (pixels - mean) / std
        return pixels

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after resizing."""
        size = self.size
        if size.height and size.width:
            return size.height, size.width
        short = size.shortest_edge or 1
        longer = int(short * max(height, width) / min(height, width))
        return (short, longer) if height <= width else (longer, short)


class TiledImageProcessor(ImageProcessor):
    """Idefics 3's: an image larger than a tile is cut into tiles, and fed in one more as well."""

    max_image_size: Sizes
    do_image_splitting: bool = True

    # Tiles are of one size, so that nothing is to be padded.
    steps: ClassVar[frozenset[str]] = ImageProcessor.steps | {"do_pad"}
    _LONGEST: ClassVar[int] = 4096

    @model_validator(mode="after")
    def _has_sizes(self) -> Self:
        if not self.size.longest_edge or not self.max_image_size.longest_edge:
            raise ValueError("size and max_image_size have no longest_edge")
        if self.do_center_crop:
            raise ValueError("do_center_crop is true, which is not done before images are cut")
        if self.max_image_size.longest_edge > _LONGEST_SIDE:
            raise ValueError(f"max_image_size is more than {_LONGEST_SIDE} pixels")
        return self._with_short_edges()

    def tiles(self, image: Image) -> Tiles:
        side = self.max_image_size.longest_edge or 1
        if self.do_resize:
            image = self._resize(image, *self.resized(image.height, image.width))
        if not self.do_image_splitting:
            return Tiles([self._numbers(self._resize(image, side, side))])
        image = self._resize(image, *_whole_tiles(image.height, image.width, side))
        rows, columns = image.height // side, image.width // side
        if rows == columns == 1:
            return Tiles([self._numbers(image)])
        cut = [
            image.crop((left, top, left + side, top + side))
            for top in range(0, image.height, side)
            for left in range(0, image.width, side)
        ]
        cut.append(self._resize(image, side, side))
        return Tiles([self._numbers(tile) for tile in cut], rows, columns)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The longer side as the file says, the other in proportion and even."""
        longest, share = self.size.longest_edge or 1, width / height
        if width >= height:
            height = int(longest / share)
            height, width = height + height % 2, longest
        else:
            width = int(longest * share)
            height, width = longest, width + width % 2
        height, width = max(height, 1), max(width, 1)
        share = width / height
        if width >= height and width > self._LONGEST:
            height, width = int(self._LONGEST / share), self._LONGEST
        elif height > width and height > self._LONGEST:
            height, width = self._LONGEST, int(self._LONGEST * share)
        return max(height, 1), max(width, 1)


class WindowedImageProcessor(ImageProcessor):
    """Qwen2-VL's: images of any shape, in whole windows of patches, within bounds of pixels."""

    patch_size: int = Field(14, gt=0, le=2**10)
    merge_size: int = Field(2, gt=0, le=16)

    _MOST_UNEVEN: ClassVar[int] = 200

    @model_validator(mode="before")
    @classmethod
    def _bounds_in_size(cls, given: dict[str, Any]) -> dict[str, Any]:
        """`min_pixels` and `max_pixels` are what the edges are called in older files."""
        older = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
        size = given.get("size")
        if not isinstance(size, dict):
            return given
        kept = {name: value for name, value in size.items() if name not in older.values()}
        for edge, name in older.items():
            if given.get(name) is not None:
                kept[edge] = given[name]
        return {**given, "size": kept}

    @model_validator(mode="after")
    def _has_sizes(self) -> Self:
        least, most = self.size.shortest_edge, self.size.longest_edge
        if not least or not most or least > most:
            raise ValueError(
                "size has no shortest_edge and longest_edge, of the least pixels first"
            )
        if self.do_center_crop:
            raise ValueError("do_center_crop is true, and images are of any size")
        return self

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Whole windows, in the same proportion as nearly as they can be. Raises `RequestError`."""
        if max(height, width) > self._MOST_UNEVEN * min(height, width):
            raise RequestError(
                f"the image has {width} x {height} pixels; a side may have {self._MOST_UNEVEN}"
                " times as many as the other"
            )
        side = self.patch_size * self.merge_size
        least, most = self.size.shortest_edge or 1, self.size.longest_edge or 1
        rows, columns = round(height / side), round(width / side)
        if rows * columns * side**2 > most:
            shrunk = math.sqrt(height * width / most)
            rows, columns = (max(1, math.floor(n / shrunk / side)) for n in (height, width))
        elif rows * columns * side**2 < least:
            grown = math.sqrt(least / (height * width))
            rows, columns = (math.ceil(n * grown / side) for n in (height, width))
        return rows * side, columns * side


def _whole_tiles(height: int, width: int, side: int) -> tuple[int, int]:
    """The longer side up to whole tiles, and the other, in proportion to that, too."""

    def up(size: int) -> int:
        return -(-size // side) * side

    share = width / height
    if width >= height:
        return up(int(up(width) / share)), up(width)
    return up(height), up(int(up(height) * share))


def _cropped(pixels: Array, height: int, width: int) -> Array:
    """The middle; where the image is smaller, black around it."""
    _, rows, columns = pixels.shape
    if rows < height or columns < width:
        top, left = (max(a - b, 0) for a, b in ((height, rows), (width, columns)))
        pad = ((0, 0), (-(-top // 2), top // 2), (-(-left // 2), left // 2))
        pixels = np.pad(pixels, pad)
        _, rows, columns = pixels.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    return pixels[:, top : top + height, left : left + width]


_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_HALF = (0.5, 0.5, 0.5)
_SIGLIP = {"size": {"height": 224, "width": 224}, "image_mean": _HALF, "image_std": _HALF}
_IDEFICS3 = {
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "resample": 1,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_QWEN2_VL = {
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
KINDS: dict[str, tuple[type[ImageProcessor], dict[str, Any]]] = {
    "CLIPImageProcessor": (ImageProcessor, _CLIP),
    "LlavaImageProcessor": (ImageProcessor, _CLIP),
    "Gemma3ImageProcessor": (ImageProcessor, _SIGLIP | {"resample": 2}),
    "Idefics3ImageProcessor": (TiledImageProcessor, _IDEFICS3),
    "Qwen2VLImageProcessor": (WindowedImageProcessor, _QWEN2_VL),
    "SiglipImageProcessor": (ImageProcessor, _SIGLIP),
    "SmolVLMImageProcessor": (TiledImageProcessor, _IDEFICS3),
}
"""By `image_processor_type`: what reads it, and what files leave out."""


def read_image_processor(folder: Path) -> ImageProcessor:
    """As preprocessor_config.json says. Raises `TokenizerError`."""
    file = folder / FILE
    data = _settings(folder)
    kind = str(data.get("image_processor_type") or data.get("feature_extractor_type"))
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if kind not in KINDS:
        raise TokenizerError(
            f"{file}: image_processor_type is {kind[:80]!r}, which is not among those that are"
            f" known here{nearest(kind, KINDS)}: {', '.join(KINDS)}"
        )
    model, defaults = KINDS[kind]
    said = {name: value for name, value in data.items() if value is not None}
    if isinstance(said.get("size"), int):
        said["size"] = {"shortest_edge": said["size"]}
    for name, value in said.items():
        known = name in model.model_fields or name in model.steps
        if name.startswith("do_") and value and not known:
            raise TokenizerError(
                f"{file}: {name} is {value!r}, a step that images are not put through here"
            )
    try:
        return model.model_validate(defaults | said)
    except ValidationError as error:
        raise TokenizerError(f"{file}: {first_problem(error)}") from None


def _settings(folder: Path) -> dict[str, Any]:
    """Of the file of its own, or of the one that transformers 5 saves for all of a processor."""
    if (folder / FILE).is_file():
        return read_object(folder / FILE)
    whole = folder / "processor_config.json"
    found = read_object(whole).get("image_processor") if whole.is_file() else None
    if not isinstance(found, dict):
        raise TokenizerError(f"{folder / FILE}: is not there, which says what images are fed as")
    return found
