"""One tool call written as a JSON object, `{"name": ..., "arguments": {...}}`, piece by piece."""

from __future__ import annotations

import json
from enum import Enum

from paddock.runtime.server.formats.json_scanner import ValueScanner
from paddock.runtime.server.formats.tool_deltas import CallArguments, CallBegins, Content, Delta

NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters")


class _Awaits(Enum):
    OPENING = "{"
    KEY = "a key"
    COLON = ":"
    VALUE = "a value"
    COMMA = ", or }"
    NOTHING = "nothing"


class CallObject:
    """Yields a call's name as soon as it is known, and its arguments as they come.

    What is no such object is given back as content.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._awaits = _Awaits.OPENING
        self._raw = ""  # all of it, until it is certain to be a call
        self._key = ""
        self._scanner = ValueScanner()
        self._value = ""
        self._name: str | None = None
        self._early_arguments: str | None = None  # came before the name
        self._streamed = False
        self.begun = False
        self.done = False
        """The object has ended, or is none."""

    def push(self, text: str) -> tuple[list[Delta], str]:
        """Deltas, and the text that is no part of the object."""
        deltas: list[Delta] = []
        while text and not self.done:
            before = text
            text = self._step(text, deltas)
            if not self.begun:
                self._raw += before[: len(before) - len(text)]
        if self.done and not self.begun and self._raw:
            deltas.append(Content(self._raw))
            self._raw = ""
        return deltas, text

    def finish(self) -> list[Delta]:
        """The text has ended within the object."""
        if self.begun or not self._raw:
            return []
        raw, self._raw = self._raw, ""
        return [Content(raw)]

    def _step(self, text: str, deltas: list[Delta]) -> str:
        """Consume a part of `text`; returns the rest."""
        if self._awaits is _Awaits.VALUE:
            return self._read_value(text, deltas)
        if self._awaits is _Awaits.KEY and self._value:
            return self._read_key(text)
        character, rest = text[0], text[1:]
        if character.isspace():
            return rest
        match self._awaits, character:
            case _Awaits.OPENING, "{":
                self._awaits = _Awaits.KEY
            case _Awaits.KEY, '"':
                self._scanner, self._value = ValueScanner(), '"'
                self._scanner.feed('"')
            case ((_Awaits.KEY | _Awaits.COMMA), "}"):
                self._end(deltas)
            case _Awaits.COLON, ":":
                self._awaits = _Awaits.VALUE
                self._scanner, self._value = ValueScanner(), ""
            case _Awaits.COMMA, ",":
                self._awaits, self._value = _Awaits.KEY, ""
            case _:
                self.done = True  # no JSON object
                return text
        return rest

    def _read_key(self, text: str) -> str:
        count = self._scanner.feed(text)
        self._value += text[:count]
        if self._scanner.done:
            self._key = _string(self._value)
            self._awaits = _Awaits.COLON
        return text[count:]

    def _read_value(self, text: str, deltas: list[Delta]) -> str:
        count = self._scanner.feed(text)
        piece = text[:count]
        stream = self._key in ARGUMENT_KEYS and self.begun and not self._streamed
        if stream:
            # A string holds the arguments' JSON a second time over: it is read when it is whole.
            opened = (self._value + piece).lstrip()
            stream = not opened.startswith('"')
            if stream and opened:
                shown = piece.lstrip() if not self._value.strip() else piece
                if shown:
                    deltas.append(CallArguments(self._index, shown))
        self._value += piece
        if self._scanner.done:
            self._awaits = _Awaits.COMMA
            self._take(self._value.strip(), deltas, streamed=stream)
        elif not text[count:] and count == 0:
            self.done = True
        return text[count:]

    def _take(self, value: str, deltas: list[Delta], *, streamed: bool) -> None:
        if self._key in NAME_KEYS and self._name is None:
            self._name = _string(value)
            if not self._name:
                self.done = True
                return
            self.begun = True
            self._raw = ""
            deltas.append(CallBegins(self._index, self._name))
        elif self._key in ARGUMENT_KEYS and not self._streamed:
            arguments = _string(value) if value.startswith('"') else value
            if streamed:
                self._streamed = True
            elif self.begun:
                self._streamed = True
                deltas.append(CallArguments(self._index, arguments))
            else:
                self._early_arguments = arguments

    def _end(self, deltas: list[Delta]) -> None:
        self.done = True
        if self.begun and not self._streamed:
            deltas.append(CallArguments(self._index, self._early_arguments or "{}"))


def _string(raw: str) -> str:
    """The text of a JSON string; what is none, as it stands."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw.strip('"')
    return value if isinstance(value, str) else ""
