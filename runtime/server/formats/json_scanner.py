"""Following a JSON value through text that arrives in pieces."""

from __future__ import annotations

from enum import Enum


class _In(Enum):
    SPACE = 0
    STRING = 1
    SCALAR = 2
    NESTED = 3


class ValueScanner:
    """Finds the end of one JSON value, without judging what is inside."""

    def __init__(self) -> None:
        self._in = _In.SPACE
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.done = False

    def feed(self, text: str) -> int:
        """How many characters of `text` are the value's (and space before it).

        `done` afterwards: the value has ended there. Numbers and words end only before what
        follows them.
        """
        for position, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                    if not self._depth:
                        return self._end(position + 1)
                continue
            if self._in is _In.SCALAR:
                if character in ",]} \t\r\n":
                    return self._end(position)
            elif character == '"':
                self._in_string = True
                if self._in is _In.SPACE:
                    self._in = _In.STRING
            elif character in "{[":
                self._depth += 1
                self._in = _In.NESTED
            elif character in "}]":
                if not self._depth:
                    return self._end(position)  # there is no value
                self._depth -= 1
                if not self._depth:
                    return self._end(position + 1)
            elif self._in is _In.SPACE and not character.isspace():
                self._in = _In.SCALAR
        return len(text)

    def _end(self, count: int) -> int:
        self.done = True
        return count
