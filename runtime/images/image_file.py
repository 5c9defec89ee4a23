"""Decoding images that anybody may have sent: a few formats, within bounds that come first."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddock.runtime.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


@dataclass(frozen=True)
class ImageLimits:
    """What one image may take, and how many a prompt may have."""

    max_bytes: int = 20 << 20
    """As sent."""
    max_pixels: int = 40_000_000
    """As decoded, three bytes each: a file of some kilobytes can say that it has billions."""
    max_images: int = 32


def decode(data: bytes, limits: ImageLimits) -> Image:
    """An image in RGB, the right side up; what is transparent is white; of several the first.

    Its header is read first: nothing is decoded that says to be too large. Raises `RequestError`.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise RequestError(
            "images need Pillow, which is not installed: pip install 'paddock[vision]'"
        ) from None
    if len(data) > limits.max_bytes:
        raise RequestError(
            f"the image has {len(data)} bytes, {limits.max_bytes} at most are read; make it smaller"
        )
    try:
        with warnings.catch_warnings():
            # Pillow's own word about size, before ours: it would be said on stderr.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            found = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RequestError(f"the image is refused: {error}") from None
    except Exception as error:  # whatever a decoder raises of what somebody made up
        raise RequestError(
            f"the image cannot be read as {', '.join(FORMATS)}: {_said(error)}"
        ) from None
    with found:
        width, height = found.size
        if width * height > limits.max_pixels:
            raise RequestError(
                f"the image has {width} x {height} pixels, {limits.max_pixels} at most are decoded;"
                " make it smaller"
            )
        try:
            upright = ImageOps.exif_transpose(found)
            if "A" in upright.getbands() or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
                upright = Image.alpha_composite(white, upright)
            return upright.convert("RGB")
        except Exception as error:
            raise RequestError(f"the image cannot be decoded: {_said(error)}") from None


def _said(error: Exception) -> str:
    return (
        str(error).split("\n")[0][:200].replace("<_io.BytesIO object", "<the data")
        or type(error).__name__
    )
