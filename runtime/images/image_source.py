"""Where a conversation's images are: in `data:` URLs, in memory, in files, on other machines."""

from __future__ import annotations

import base64
import binascii
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from paddock.runtime.errors import RequestError
from paddock.runtime.images.image_file import ImageLimits

if TYPE_CHECKING:
    from paddock.runtime.text.chat_template import Message

FETCH_SECONDS = 10.0
PARTS = ("image", "image_url", "input_image")


def has_images(messages: Sequence[Message]) -> bool:
    """Whether a message has a part that is an image."""
    return any(
        isinstance(part, Mapping) and part.get("type") in PARTS
        for message in messages
        if isinstance(content := message.get("content"), Sequence) and not isinstance(content, str)
        for part in content
    )


@dataclass(frozen=True)
class ImageSource:
    """How images that messages name are come by.

    `hosts`: the machines from which they may be fetched over http and https, `*` for any; none by
    default, for whoever may name an address can have this machine ask what only it can reach.
    `files`: whether they may be files of this machine.
    """

    limits: ImageLimits = field(default_factory=ImageLimits)
    hosts: tuple[str, ...] = ()
    files: bool = False

    def take_out(self, messages: Sequence[Message]) -> tuple[list[Message], list[bytes]]:
        """Messages with `{"type": "image"}` in the place of each image, and the images in order.

        A part is `{"type": "image_url", "image_url": {"url": ...}}`, as OpenAI's, or, with
        `files`, `{"type": "image", "image": ...}` of bytes or a path. Raises `RequestError`.
        """
        images: list[bytes] = []
        out: list[Message] = []
        for message in messages:
            content = message.get("content")
            if isinstance(content, Sequence) and not isinstance(content, str):
                message = {**message, "content": [self._part(part, images) for part in content]}
            out.append(message)
        return out, images

    def _part(self, part: Any, images: list[bytes]) -> Any:
        if not isinstance(part, Mapping) or part.get("type") not in PARTS:
            return part
        if len(images) == self.limits.max_images:
            raise RequestError(
                f"the conversation has more than {self.limits.max_images} images; leave some out"
            )
        images.append(self._image(part))
        return {"type": "image"}

    def _image(self, part: Mapping[str, Any]) -> bytes:
        given = part.get("image_url", part.get("image"))
        if isinstance(given, Mapping):
            given = given.get("url")
        if isinstance(given, bytes):
            return given
        if isinstance(given, str | Path):
            return self.fetch(given)
        raise RequestError(
            f"an image is a data: URL, a path or bytes, found {type(given).__name__}; a part is"
            ' {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
        )

    def fetch(self, where: str | Path) -> bytes:
        """The bytes of an image. Raises `RequestError`."""
        if isinstance(where, str) and where[:5].lower() == "data:":
            return self._data(where)
        if isinstance(where, str) and where[:8].lower().startswith(("http://", "https://")):
            return self._remote(where)
        if not self.files:
            raise RequestError(
                "images come in data: URLs here, e.g. data:image/png;base64,...; this is"
                f" {str(where)[:40]!r}"
            )
        return self._file(Path(where))

    def _data(self, url: str) -> bytes:
        head, comma, body = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RequestError(
                f"expected data:image/...;base64,..., found {url[:40]!r}, which has no base64"
            )
        if len(body) > 4 * (self.limits.max_bytes // 3 + 1):
            raise self._too_large(len(body) * 3 // 4)
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"an image's base64 cannot be decoded: {error}") from None

    def _file(self, path: Path) -> bytes:
        try:
            size = path.stat().st_size
            if size > self.limits.max_bytes:
                raise self._too_large(size)
            return path.read_bytes()
        except (OSError, ValueError) as error:
            raise RequestError(f"{path}: cannot be read: {error}") from None

    def _remote(self, url: str) -> bytes:
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:
            host = ""
        if "*" not in self.hosts and host not in self.hosts:
            allowed = f"; allowed are {', '.join(self.hosts)}" if self.hosts else ""
            raise RequestError(
                f"images are not fetched from {host[:80]!r} (server.image_hosts){allowed}; send it"
                " as a data: URL"
            )
        try:
            with _OPENER.open(url, timeout=FETCH_SECONDS) as answer:
                data: bytes = answer.read(self.limits.max_bytes + 1)
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise RequestError(f"{url[:200]}: cannot be fetched: {str(error)[:200]}") from None
        if len(data) > self.limits.max_bytes:
            raise self._too_large(len(data))
        return data

    def _too_large(self, size: int) -> RequestError:
        return RequestError(
            f"the image has {size} bytes, {self.limits.max_bytes} at most are read; make it smaller"
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The host that is asked is the one that was allowed."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
