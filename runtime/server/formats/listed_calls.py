"""Calls as a JSON list behind a marker: Granite, Phi-4-mini, Jamba, Nemotron, Command R7B.

`<|tool_call|>[{"name": "f", "arguments": {}}]`, with or without a marker at its end.
"""

from __future__ import annotations

from paddock.runtime.server.formats.call_object import CallObject
from paddock.runtime.server.formats.marked_text import MarkedText, Words
from paddock.runtime.server.formats.tool_deltas import Delta


class ListedCalls:
    """`hidden` are markers that only enclose: words between them are content."""

    def __init__(self, opening: str, closing: str, hidden: tuple[str, ...] = ()) -> None:
        self._opening = opening
        self._text = MarkedText([opening, closing, *hidden])
        self._words = Words()
        self._inside = False
        self._call: CallObject | None = None
        self._calls = 0

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        deltas: list[Delta] = []
        for before, marker in self._text.push(text):
            self._read(before, deltas)
            if marker:
                self._end_call(deltas)
                self._inside = marker == self._opening
                if self._inside:
                    self._words.call()
        return deltas

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        deltas: list[Delta] = []
        self._read(self._text.finish(), deltas)
        self._end_call(deltas)
        return deltas + self._words.finish()

    def _read(self, text: str, deltas: list[Delta]) -> None:
        while text:
            if self._call is not None:
                found, text = self._call.push(text)
                deltas += found
                if self._call.done:
                    self._calls += self._call.begun
                    self._inside = self._call.begun
                    self._call = None
                continue
            if not self._inside:
                deltas += self._words.push(text)
                return
            text = text.lstrip(" \t\r\n,[")
            if text.startswith("{"):
                self._call = CallObject(self._calls)
            elif text:  # the list has ended, or there is none
                self._inside = False
                text = text.lstrip(" \t\r\n]")

    def _end_call(self, deltas: list[Delta]) -> None:
        """A marker, or the text's end, stands within an object."""
        if self._call is not None:
            deltas += self._call.finish()
            self._calls += self._call.begun
            self._call = None
