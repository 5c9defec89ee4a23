"""Calls whose arguments stand in tags, one after the other: GLM-4.5 and Qwen3-Coder.

`<tool_call>f\\n<arg_key>a</arg_key>\\n<arg_value>1</arg_value>\\n</tool_call>` and
`<tool_call>\\n<function=f>\\n<parameter=a>\\n1\\n</parameter>\\n</function>\\n</tool_call>`.

Text in a tag does not say whether `1` is a number: the function's schema does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paddock.runtime.server.formats.marked_text import MarkedText, Words
from paddock.runtime.server.formats.tool_deltas import CallArguments, CallBegins, Delta


@dataclass(frozen=True)
class Tags:
    """How one family writes calls."""

    opening: str
    closing: tuple[str, ...]
    name: str
    """Begins the name; the name goes up to the next tag."""
    key: str
    """Begins an argument's name."""
    value: str
    """Begins its value; empty where a `>` does."""
    end: str
    """Ends the value."""

    @property
    def all(self) -> list[str]:
        found = (self.opening, *self.closing, self.name, self.key, self.value, self.end)
        return [tag for tag in dict.fromkeys(found) if tag]


GLM = Tags(
    opening="<tool_call>",
    closing=("</tool_call>",),
    name="<tool_call>",
    key="<arg_key>",
    value="<arg_value>",
    end="</arg_value>",
)
QWEN_CODER = Tags(
    opening="<tool_call>",
    closing=("</function>", "</tool_call>"),
    name="<function=",
    key="<parameter=",
    value="",
    end="</parameter>",
)


class TaggedCalls:
    """`functions`: the schemas of their arguments, by name."""

    def __init__(self, tags: Tags, functions: Mapping[str, Mapping[str, Any]]) -> None:
        self._tags = tags
        self._functions = functions
        self._text = MarkedText(tags.all)
        self._words = Words()
        self._tag = ""  # the one that stands before the text that comes
        self._pieces: list[str] = []  # of the text since then
        self._name: str | None = None
        self._key = ""
        self._arguments = 0
        self._calls = 0

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        deltas: list[Delta] = []
        for before, tag in self._text.push(text):
            if not self._tag:
                deltas += self._words.push(before) if before else []
            else:
                self._pieces.append(before)
            if tag:
                self._end_text(tag, deltas)
        return deltas

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        deltas: list[Delta] = []
        rest = self._text.finish()
        if not self._tag:
            deltas += self._words.push(rest) if rest else []
        else:
            self._pieces.append(rest)
            self._end_text(self._tags.closing[0], deltas)
        return deltas + self._words.finish()

    def _end_text(self, tag: str, deltas: list[Delta]) -> None:
        """Take what has stood between the tag before and this one."""
        tags, text = self._tags, "".join(self._pieces)
        self._pieces.clear()
        if self._tag == tags.name and self._name is None:
            self._begin(text, deltas)
        elif self._tag == tags.opening:
            deltas += self._words.push(text)  # mostly none
        elif self._tag == tags.key and self._name is not None:
            self._key = text.partition("</arg_key>" if tags.value else ">")[0].strip()
            if not tags.value:
                self._argument(text.partition(">")[2], deltas)
        elif tags.value and self._tag == tags.value and self._name is not None:
            self._argument(text, deltas)
        if tag in tags.closing:
            self._end_call(deltas)
        elif tag == tags.opening:
            self._end_call(deltas)
            self._words.call()
            self._tag = tag
        elif self._tag or tag == tags.name:
            if not self._tag:
                self._words.call()
            self._tag = tag

    def _begin(self, text: str, deltas: list[Delta]) -> None:
        name = text.strip().removesuffix(">").strip()
        if name and len(name) <= 256 and not any(character.isspace() for character in name):
            self._name = name
            self._arguments = 0
            deltas.append(CallBegins(self._calls, name))
        else:
            deltas += self._words.push(text)

    def _argument(self, text: str, deltas: list[Delta]) -> None:
        # A line break belongs to the tag on either side of it.
        value = text.removeprefix("\n").removesuffix("\n")
        lead = ", " if self._arguments else "{"
        self._arguments += 1
        written = f"{lead}{json.dumps(self._key, ensure_ascii=False)}: {self._json(value)}"
        deltas.append(CallArguments(self._calls, written))

    def _json(self, text: str) -> str:
        """The value as JSON: a string where the schema says so, or where it is no JSON."""
        described: Any = self._functions.get(self._name or "", {})
        for step in ("properties", self._key):
            described = described.get(step) if isinstance(described, Mapping) else None
        kind = described.get("type") if isinstance(described, Mapping) else None
        if kind != "string":
            try:
                return json.dumps(json.loads(text), ensure_ascii=False)
            except (ValueError, RecursionError):
                pass
        return json.dumps(text, ensure_ascii=False)

    def _end_call(self, deltas: list[Delta]) -> None:
        if self._name is not None:
            deltas.append(CallArguments(self._calls, "}" if self._arguments else "{}"))
            self._calls += 1
        self._name, self._tag = None, ""
