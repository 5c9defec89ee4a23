"""What an image is to a model that sees: how it is cut up, and what stands for it in a prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageForm:
    """What the runtime has to know to feed images to a model.

    An image is a row for each patch (and one before them where there is a class token), of
    `row_size` numbers. Square windows of `window` x `window` patches follow one another, and of
    each the model makes one row, which takes the place of a token `token_id`; `first_row` of them
    are left out.
    """

    token_id: int
    patch_size: int
    """Of a square patch, in pixels."""
    channels: int = 3
    class_token: bool = False
    """A row that is no patch comes first; a last column of ones tells it from patches."""
    first_row: int = 0
    side: int | None = None
    """Pixels of an image's side, where all are squares of one size."""
    window: int = 1
    frames: int = 1
    """How often a patch has each channel: an image is a still film to a tower of videos."""
    area: int | None = None
    """Windows on each side of an area, where some layers see no more of an image."""
    grid: bool = False
    """The model is told in which row and column of its image a token's window is."""
    whole: bool = False
    """The tokens of an image see each other: they are in one step."""
    marker: str | None = None
    """What chat templates write for an image, where it is not the token."""
    before: str = ""
    after: str = ""
    """What stands around an image's tokens in text, in the place of the marker."""

    @property
    def row_size(self) -> int:
        return self.channels * self.frames * self.patch_size**2 + self.class_token

    def written(self, token: str, rows: int, columns: int) -> str:
        """What stands for an image in text, `token` for each that is fed for it.

        It was cut into `rows` x `columns` tiles, and is fed whole behind these; 0: whole alone.
        """
        return f"{self.before}{token}{self.after}"


@dataclass(frozen=True)
class TiledImageForm(ImageForm):
    """Idefics 3's: large images are cut into tiles, whose places are told in the text."""

    def written(self, token: str, rows: int, columns: int) -> str:
        edge = "<fake_token_around_image>"
        lines = [
            "".join(f"{edge}<row_{r + 1}_col_{c + 1}>{token}" for c in range(columns)) + "\n"
            for r in range(rows)
        ]
        before = "".join([*lines, "\n"]) if lines else ""
        return f"{before}{edge}<global-img>{token}{edge}"
