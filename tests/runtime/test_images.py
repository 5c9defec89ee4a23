"""Images from files to numbers: as transformers' processors, and nothing that is too large."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paddock.models.images import ImageForm
from paddock.runtime.errors import RequestError
from paddock.runtime.images.grid_positions import GridPositions
from paddock.runtime.images.image_file import ImageLimits, decode
from paddock.runtime.images.image_processor import read_image_processor
from paddock.runtime.images.image_source import ImageSource
from paddock.runtime.images.prepared import PlacedImage, content, prepare
from paddock.runtime.strict_json import TokenizerError

LIMITS = ImageLimits()


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth enough that resizing matters, and every pixel another."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    bands = [np.sin(9 * x + 4 * y * k) * 127 + 128 for k in range(1, 1 + len(mode))]
    if mode == "RGBA":
        bands[3][: height // 2] = 0
    return Image.fromarray(np.stack(bands, -1).astype(np.uint8).squeeze(), mode[:4])


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PROCESSORS: dict[str, dict[str, Any]] = {
    "clip": {"image_processor_type": "CLIPImageProcessor"},
    "llava-1.5": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": 36,
        "resample": 3,
        "do_convert_rgb": True,
    },
    "small": {  # less than its crop
        "image_processor_type": "CLIPImageProcessorFast",
        "do_resize": False,
        "crop_size": {"height": 61, "width": 50},
    },
    "siglip": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 38, "width": 45},
        "image_mean": [0.5, 0.4, 0.3],
    },
    "gemma3": {"image_processor_type": "Gemma3ImageProcessor", "do_pan_and_scan": None},
    "bilinear": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 9, "width": 60},
        "resample": 2,
        "do_normalize": False,
    },
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(57, 40), (31, 80), (300, 200)])
def test_pixels_are_those_of_transformers(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    if not importlib.util.find_spec("transformers"):
        pytest.skip("transformers is not installed (`make parity` installs it)")
    import transformers

    settings = PROCESSORS[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    kind = settings["image_processor_type"].removesuffix("Fast") + "Pil"
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    image = picture(*size)
    (found,) = read_image_processor(tmp_path).tiles(image).pixels
    expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((57, 39), 3, 3), ((31, 80), 3, 2), ((300, 11), 1, 3), ((2, 700), 3, 1), ((8, 8), 3, 3)],
)
def test_tiles_are_those_of_transformers(
    size: tuple[int, int], rows: int, columns: int, split: bool, tmp_path: Path
) -> None:
    if not importlib.util.find_spec("transformers"):
        pytest.skip("transformers is not installed (`make parity` installs it)")
    import transformers

    settings = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": split,
        "do_pad": True,
        "max_image_size": {"longest_edge": 20},
        "size": {"longest_edge": 60},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    theirs = transformers.Idefics3ImageProcessorPil.from_pretrained(tmp_path)
    image = picture(*size)
    found = read_image_processor(tmp_path).tiles(image)
    expected = theirs(image, return_tensors="np", return_row_col_info=True)
    assert ([[found.rows]], [[found.columns]]) == (expected["rows"], expected["cols"])
    assert (found.rows, found.columns) == ((rows, columns) if split else (0, 0))
    np.testing.assert_allclose(np.stack(found.pixels), expected["pixel_values"][0], atol=1e-6)


@pytest.mark.parametrize("bounds", ["edges", "pixels", "both"])
@pytest.mark.parametrize("size", [(57, 40), (31, 80), (300, 11), (5, 3), (64, 64), (380, 2)])
def test_windows_are_those_of_transformers(
    size: tuple[int, int], bounds: str, tmp_path: Path
) -> None:
    """Images of any size: how they are resized, and the order of their patches."""
    if not importlib.util.find_spec("transformers"):
        pytest.skip("transformers is not installed (`make parity` installs it)")
    import torch
    import transformers
    from transformers.vision_utils import get_vision_window_index

    settings: dict[str, Any] = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 3,
        "merge_size": 2,
        "temporal_patch_size": 2,
    }
    if bounds != "edges":
        settings |= {"min_pixels": 300, "max_pixels": 2000}
    if bounds != "pixels":
        settings["size"] = {"shortest_edge": 100, "longest_edge": 4000}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = picture(*size)
    theirs = transformers.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    expected = theirs(image, return_tensors="np")
    grid = expected["image_grid_thw"]

    (pixels,) = read_image_processor(tmp_path).tiles(image).pixels
    form = ImageForm(token_id=1, patch_size=3, window=2, frames=2, grid=True)
    found = prepare(pixels, form)
    np.testing.assert_allclose(found.patches, expected["pixel_values"], atol=1e-6)
    assert [1, *(2 * n for n in found.grid)] == grid[0].tolist()
    assert (found.columns, found.areas) == (grid[0, 2], (len(found.patches),))

    areas = prepare(pixels, replace(form, area=3))
    order, starts = get_vision_window_index(torch.tensor(grid), 2, 18, 3)
    windows = expected["pixel_values"].reshape(len(order), -1)
    np.testing.assert_allclose(areas.patches.reshape(windows.shape), windows[order], atol=1e-6)
    assert list(areas.areas) == np.diff(starts).tolist()
    np.testing.assert_array_equal(order[areas.rows], np.arange(len(order)))


def test_an_image_of_a_sliver_is_refused(tmp_path: Path) -> None:
    settings = {"image_processor_type": "Qwen2VLImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(RequestError, match=r"has 402 x 2 pixels; a side may have 200 times"):
        read_image_processor(tmp_path).tiles(picture(402, 2))


def test_places_behind_an_image_go_on_from_its_longer_side() -> None:
    form = ImageForm(token_id=1, patch_size=1, grid=True)
    image = PlacedImage(prepare(np.zeros((3, 2, 4), np.float32), form), 3)
    found = GridPositions.of(12, [image])
    assert found.between(0, 14).T.tolist() == [
        *([n, n, n] for n in range(3)),
        *([3, 3 + row, 3 + column] for row in range(2) for column in range(4)),
        *([n, n, n] for n in range(7, 10)),
    ]
    np.testing.assert_array_equal(found.between(5, 13), found.between(0, 14)[:, 5:13])
    assert found.between(20, 21).tolist() == [[16]] * 3
    flat = replace(image, image=prepare(np.zeros((3, 1, 8), np.float32), form))
    assert flat.image.digest != image.image.digest


def test_an_image_of_one_tile_is_not_cut(tmp_path: Path) -> None:
    settings = {
        "image_processor_type": "SmolVLMImageProcessor",
        "max_image_size": {"longest_edge": 20},
        "size": {"longest_edge": 20},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = read_image_processor(tmp_path).tiles(picture(57, 40))
    assert [pixels.shape for pixels in found.pixels] == [(3, 20, 20)]
    assert (found.rows, found.columns) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "Idefics3ImageProcessor", "size": {"height": 9}}, "no longest"),
        ({"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 2**22}, "least pixels"),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 1 << 20}},
            "edge",
        ),
        (None, "is not there"),
        ({"image_processor_type": "FuyuImageProcessor"}, "is not among those that are known"),
        ({"image_processor_type": "CLIPImageProcessor", "do_pad": True}, "do_pad is True"),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"width": 3}}, "size has neither"),
        ({"image_processor_type": "CLIPImageProcessor", "resample": "3"}, "resample"),
    ],
)
def test_settings_are_read_strictly(
    settings: dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError, match=message):
        read_image_processor(tmp_path)


def test_patches_are_windows_row_by_row() -> None:
    pixels = np.arange(3 * 7 * 6, dtype=np.float32).reshape(3, 7, 6)
    made = prepare(pixels, ImageForm(token_id=1, patch_size=3))
    assert made.patches.shape == (4, 27)
    np.testing.assert_array_equal(made.patches[1], pixels[:, :3, 3:6].reshape(-1))
    np.testing.assert_array_equal(made.patches[2], pixels[:, 3:6, :3].reshape(-1))
    before = prepare(pixels, ImageForm(token_id=1, patch_size=3, class_token=True, first_row=1))
    np.testing.assert_array_equal(before.patches[1:, :-1], made.patches)
    assert before.patches[0].tolist() == [0] * 27 + [1]
    assert before.rows.tolist() == [1, 2, 3, 4]


def test_windows_of_patches_follow_one_another() -> None:
    pixels = np.random.default_rng(3).random((3, 8, 12), np.float32)
    one = prepare(pixels, ImageForm(token_id=1, patch_size=2))
    made = prepare(pixels, ImageForm(token_id=1, patch_size=2, window=2))
    assert made.positions.tolist()[:8] == [0, 1, 6, 7, 2, 3, 8, 9]
    np.testing.assert_array_equal(made.patches, one.patches[made.positions])
    assert (made.made, made.rows.tolist()) == (6, [0, 1, 2, 3, 4, 5])


def test_content_tells_images_and_places_apart() -> None:
    form = ImageForm(token_id=1, patch_size=2)
    random = np.random.default_rng(1)
    one, two = (prepare(random.random((3, 4, 4), np.float32), form) for _ in range(2))
    assert one.digest != two.digest
    assert content([PlacedImage(one, 3)], 0, 3) == content([PlacedImage(one, 3)], 7, 9) == b""
    seen = [
        content([PlacedImage(image, start)], 4, 8) for image in (one, two) for start in (1, 4, 5)
    ]
    assert len(set(seen)) == len(seen)


def test_images_are_decoded_upright_and_on_white() -> None:
    turned = picture(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    found = decode(encoded(turned, exif=exif), LIMITS)
    assert (found.mode, found.size) == ("RGB", (20, 40))
    np.testing.assert_array_equal(np.asarray(found), np.rot90(np.asarray(turned), -1))
    clear = decode(encoded(picture(8, 8, "RGBA")), LIMITS)
    assert np.asarray(clear)[:4].min() == 255
    assert np.asarray(clear)[4:].min() < 200
    assert decode(encoded(picture(8, 8, "L")), LIMITS).mode == "RGB"
    for kind in ("JPEG", "WEBP", "GIF"):
        assert decode(encoded(picture(9, 5), kind), LIMITS).size == (9, 5)


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says to be as large as you like."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    body = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(9000, 9000), r"9000 x 9000 pixels, 40000000 at most"),
        (bomb(12000, 9000), r"12000 x 9000 pixels"),
        (bomb(60000, 60000), r"refused: Image size \(3600000000 pixels\) exceeds"),
        (bomb(300, 300), "cannot be decoded"),  # it says more than it has
        (encoded(picture(30, 30))[:100], "cannot be decoded|cannot be read"),
        (b"", "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as JPEG, PNG, WEBP, GIF"),
        (encoded(picture(9, 9), "TIFF"), "cannot be read"),
        (encoded(picture(9, 9), "PDF"), "cannot be read"),
        (bytes(21 << 20), "has 22020096 bytes, 20971520 at most"),
    ],
)
def test_what_is_too_large_or_no_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode(data, LIMITS)


def test_many_broken_files_are_refused() -> None:
    """Whatever the decoders raise is one error, never another."""
    random = np.random.default_rng(5)
    whole = {kind: encoded(picture(24, 18), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")}
    refused = 0
    for data in whole.values():
        for _ in range(60):
            broken = bytearray(data[: random.integers(8, len(data) + 1)])
            for at in random.integers(0, len(broken), 5):
                broken[at] = random.integers(0, 256)
            try:
                decode(bytes(broken), LIMITS)
            except RequestError:
                refused += 1
    assert refused > 40


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_images_come_in_data_urls_and_from_files_where_allowed(tmp_path: Path) -> None:
    data = encoded(picture(5, 4))
    file = tmp_path / "a.png"
    file.write_bytes(data)
    words = {"type": "text", "text": "What is this?"}
    message = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": data_url(data)}}, words],
    }
    ours = ImageSource(files=True)
    taken, images = ours.take_out([message, {"role": "assistant", "content": "A cat."}])
    assert images == [data]
    assert taken[0]["content"] == [{"type": "image"}, words]
    assert taken[1]["content"] == "A cat."
    for given in (file, str(file), data):
        _, images = ours.take_out(
            [{"role": "user", "content": [{"type": "image", "image": given}]}]
        )
        assert images == [data]
    with pytest.raises(RequestError, match=r"images come in data: URLs here"):
        ImageSource().fetch(str(file))
    with pytest.raises(RequestError, match="cannot be read"):
        ours.fetch(tmp_path / "none.png")
    with pytest.raises(RequestError, match="more than 1 images"):
        ImageSource(ImageLimits(max_images=1)).take_out([message, message])
    with pytest.raises(RequestError, match="is a data: URL, a path or bytes, found int"):
        ours.take_out([{"role": "user", "content": [{"type": "image", "image": 3}]}])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png,abc", "has no base64"),
        ("data:image/png;base64,a!b=", "cannot be decoded"),
        ("data:image/png;base64," + "A" * 400, r"has 300 bytes, 100 at most"),
        ("file:///etc/passwd", "images come in data: URLs"),
        ("/etc/passwd", "images come in data: URLs"),
        ("ftp://example.org/a.png", "images come in data: URLs"),
        ("https://example.org/a.png", r"not fetched from 'example.org' \(server.image_hosts\)"),
        ("http://[::1", "not fetched from ''"),
    ],
)
def test_other_places_are_refused(url: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ImageSource(ImageLimits(max_bytes=100)).fetch(url)


class _Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(200) if self.path == "/large" else b"image")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_allowed_hosts_are_asked(elsewhere: str) -> None:
    source = ImageSource(ImageLimits(max_bytes=100), hosts=("127.0.0.1",))
    assert source.fetch(f"{elsewhere}/a.png") == b"image"
    with pytest.raises(RequestError, match="bytes, 100 at most"):
        source.fetch(f"{elsewhere}/large")
    with pytest.raises(RequestError, match="cannot be fetched: HTTP Error 302"):
        source.fetch(f"{elsewhere}/moved")
    with pytest.raises(RequestError, match=r"allowed are example\.org"):
        ImageSource(hosts=("example.org",)).fetch(f"{elsewhere}/a.png")
