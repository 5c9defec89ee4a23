"""From a conversation with images to a prompt of a model that sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paddock.models.images import ImageForm
from paddock.runtime.errors import RequestError
from paddock.runtime.images.image_file import ImageLimits, decode
from paddock.runtime.images.image_processor import ImageProcessor, Tiles, read_image_processor
from paddock.runtime.images.image_source import ImageSource
from paddock.runtime.images.prepared import ImagePrompt, PlacedImage, PreparedImage, prepare
from paddock.runtime.text.chat_template import Message
from paddock.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sight:
    """What a checkpoint's files say about images, and the tokenizer that reads the text around."""

    form: ImageForm
    tokenizer: Tokenizer
    folder: Path

    @cached_property
    def processor(self) -> ImageProcessor:
        """Raises `TokenizerError`."""
        return read_image_processor(self.folder)

    @cached_property
    def token(self) -> str:
        """What stands for an image in text."""
        found = self.tokenizer.token(self.form.token_id)
        if found is None:
            raise RequestError(f"the tokenizer has no token {self.form.token_id}, for images")
        return found

    def encode_chat(
        self, messages: Sequence[Message], source: ImageSource, **options: Any
    ) -> ImagePrompt:
        """A conversation through the chat template, its images in their places.

        Raises `RequestError` and `TokenizerError`.
        """
        taken, images = source.take_out(messages)
        return self.encode(self.apply_chat_template(taken, **options), images, source.limits)

    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> str:
        """The text of a conversation; images are parts `{"type": "image"}` of messages."""
        template = self.tokenizer.chat_templates.select(
            options.get("chat_template"), with_tools=bool(options.get("tools"))
        )
        # One that knows parts may know nothing else; one that does not reads text alone.
        knows_parts = "'image'" in template or '"image"' in template
        shown = [_in_parts(m) if knows_parts else self._in_text(m) for m in messages]
        return self.tokenizer.apply_chat_template(shown, **options)

    def encode(self, text: str, images: Sequence[bytes], limits: ImageLimits) -> ImagePrompt:
        """The prompt of a text in which the model's image token or marker stands for each image."""
        form = self.form
        marker = form.marker or self.token
        found = text.count(marker)
        if found != len(images):
            raise RequestError(
                f"the prompt has {found} places for images ({marker}), and there are"
                f" {len(images)} images; leave {marker} out of messages"
            )
        seen: list[PreparedImage] = []
        shown: list[str] = []
        for data in images:
            tiles = self.tiles(data, limits)
            shown.append(form.written(self.token, tiles.rows, tiles.columns))
            seen += [prepare(pixels, form) for pixels in tiles.pixels]
        first, *others = text.split(marker)
        text = first + "".join(a for pair in zip(shown, others, strict=True) for a in pair)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        places = [i for i, token in enumerate(ids) if token == form.token_id]
        if len(places) != len(seen):
            raise RequestError(
                f"the prompt has {len(places)} tokens {self.token} for {len(seen)} images; leave"
                f" {self.token} out of messages"
            )
        token_ids: list[int] = []
        placed: list[PlacedImage] = []
        before = 0
        for place, image in zip(places, seen, strict=True):
            token_ids += ids[before:place]
            placed.append(PlacedImage(image, len(token_ids)))
            token_ids += [form.token_id] * len(image.rows)
            before = place + 1
        return ImagePrompt([*token_ids, *ids[before:]], placed)

    def tiles(self, data: bytes, limits: ImageLimits) -> Tiles:
        """What the model is fed for an image file. Raises `RequestError` and `TokenizerError`."""
        tiles = self.processor.tiles(decode(data, limits))
        side, window = self.form.side, self.form.patch_size * self.form.window
        for pixels in tiles.pixels:
            channels, height, width = pixels.shape
            read = (
                (height, width) == (side, side) if side else not (height % window or width % window)
            )
            if channels != self.form.channels or not read:
                sides = [side, side] if side else f"sides of whole {window}"
                raise RequestError(
                    f"{self.folder}: its files make {list(pixels.shape)} of an image, the tower"
                    f" reads {self.form.channels} channels and {sides}; compare"
                    " preprocessor_config.json with vision_config in config.json"
                )
        return tiles

    def _in_text(self, message: Message) -> Message:
        content = message.get("content")
        if isinstance(content, str) or not isinstance(content, Sequence):
            return message
        return {**message, "content": "\n".join(self._text_of(part) for part in content)}

    def _text_of(self, part: Any) -> str:
        if isinstance(part, Mapping) and part.get("type") == "image":
            return self.form.marker or self.token
        return str(part.get("text", "")) if isinstance(part, Mapping) else str(part)


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str) or not content:
        return message
    return {**message, "content": [{"type": "text", "text": content}]}
