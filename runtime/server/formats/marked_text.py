"""Text that arrives in pieces, split at markers; and words around what the markers enclose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from paddock.runtime.server.formats.tool_deltas import Content, Delta, held_back


class MarkedText:
    """Tells markers from what stands between them, however the pieces are cut."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._markers = markers
        longest_first = sorted(markers, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)))
        self._rest = ""

    def push(self, text: str) -> Iterator[tuple[str, str]]:
        """Text (perhaps none) and the marker after it; an empty marker: none is there yet."""
        text, start = self._rest + text, 0
        for found in self._any.finditer(text):
            yield text[start : found.start()], found[0]
            start = found.end()
        rest = text[start:]
        kept = max(held_back(rest, marker) for marker in self._markers)
        self._rest = rest[len(rest) - kept :]
        if len(rest) > kept:
            yield rest[: len(rest) - kept], ""

    def finish(self) -> str:
        """What may have become a marker."""
        rest, self._rest = self._rest, ""
        return rest


class Words:
    """What a model says around its calls. Space there is the template's: it waits for words."""

    def __init__(self) -> None:
        self._space: list[str] = []
        self._begun = False  # something was said since the last call
        self._called = False

    def push(self, text: str) -> list[Delta]:
        words = text.rstrip()
        if not words:
            self._space.append(text)
            return []
        said = "".join([*self._space, words])
        self._space = [text[len(words) :]]
        if self._called and not self._begun:
            said = said.lstrip()
        self._begun = True
        return [Content(said)]

    def call(self) -> None:
        """A call stands here."""
        self._space.clear()
        self._called, self._begun = True, False

    def finish(self) -> list[Delta]:
        space = "".join(self._space)
        return [Content(space)] if space and not self._called else []
