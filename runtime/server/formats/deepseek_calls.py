"""Calls as DeepSeek V3, R1 and V3.1 write them: a name and JSON between special tokens.

V3 and R1: `<call begin>function<sep>name`, a line break, and the arguments as a block of JSON.
V3.1: `<call begin>name<sep>{arguments}<call end>`.
"""

from __future__ import annotations

from paddock.runtime.server.formats.json_scanner import ValueScanner
from paddock.runtime.server.formats.marked_text import MarkedText, Words
from paddock.runtime.server.formats.tool_deltas import CallArguments, CallBegins, Delta

_BAR, _SPACE = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"


def _mark(words: str) -> str:
    return f"<{_BAR}{words.replace(' ', _SPACE)}{_BAR}>"


CALLS_BEGIN, CALLS_END = _mark("tool calls begin"), _mark("tool calls end")
CALL_BEGIN, CALL_END = _mark("tool call begin"), _mark("tool call end")
SEPARATOR = _mark("tool sep")
_MAX_NAME = 256


class DeepSeekCalls:
    def __init__(self) -> None:
        self._text = MarkedText([CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR])
        self._words = Words()
        self._head: str | None = None  # of a call, before the separator
        self._named = ""  # after it, until the arguments begin
        self._scanner: ValueScanner | None = None
        self._begun = False
        self._calls = 0

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        deltas: list[Delta] = []
        for before, marker in self._text.push(text):
            self._read(before, deltas)
            match marker:
                case "":
                    continue
                case str() if marker == CALL_BEGIN:
                    self._end(deltas)
                    self._words.call()
                    self._head, self._named = "", ""
                case str() if marker == SEPARATOR and self._head is not None:
                    self._scanner = self._scanner or ValueScanner()
                case _:
                    self._end(deltas)
                    self._words.call()
        return deltas

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        deltas: list[Delta] = []
        self._read(self._text.finish(), deltas)
        self._end(deltas)
        return deltas + self._words.finish()

    def _read(self, text: str, deltas: list[Delta]) -> None:
        if self._head is None:
            if text:
                deltas += self._words.push(text)
        elif self._scanner is None:
            self._head = (self._head + text)[: _MAX_NAME + 1]
        elif text and not self._scanner.done:
            if not self._begun:
                place = text.find("{")
                # What is too long for a name is none: it is not kept.
                self._named = (self._named + (text if place < 0 else text[:place]))[:_MAX_NAME]
                if place < 0:
                    return
                self._begin(deltas)
                text = text[place:]
            piece = text[: self._scanner.feed(text)]
            if piece and self._begun:
                deltas.append(CallArguments(self._calls, piece))

    def _begin(self, deltas: list[Delta]) -> None:
        head = (self._head or "").strip()
        name = self._named.strip().split("\n")[0].strip() if head == "function" else head
        self._begun = bool(name)
        if name:
            deltas.append(CallBegins(self._calls, name))
        else:
            self._head = None

    def _end(self, deltas: list[Delta]) -> None:
        """The call, if there is one, ends here."""
        if self._head is not None and self._scanner is not None:
            if not self._begun:
                self._begin(deltas)
                if self._begun:
                    deltas.append(CallArguments(self._calls, "{}"))
            self._calls += self._begun
        self._head, self._scanner, self._begun = None, None, False
