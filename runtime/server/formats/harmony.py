"""What gpt-oss writes: messages on channels, between special tokens (OpenAI's harmony format).

`<|channel|>analysis<|message|>...<|end|>` is reasoning, the channels `final` and `commentary` are
words for the user, and one to a function is a call: `<|channel|>commentary to=functions.f`,
`<|constrain|>json<|message|>{...}<|call|>`. The prompt ends with `<|start|>assistant`. Text without
these marks is the answer. Source: https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from paddock.runtime.server.formats.marked_text import MarkedText
from paddock.runtime.server.formats.tool_deltas import (
    CallArguments,
    CallBegins,
    Content,
    Delta,
    Reasoning,
)
from paddock.runtime.server.token_texts import TokenTexts

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
_MARKERS = (CHANNEL, MESSAGE, START, "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([A-Za-z0-9_.-]{1,128})")
_MAX_HEADER = 1024


class Harmony:
    def __init__(self) -> None:
        self._text = MarkedText(_MARKERS)
        self._header: str | None = None  # of a message whose text has not begun
        self._channel = "final"
        self._called = False  # the message is a call's arguments
        self._blank = False  # and nothing of them has come
        self._calls = 0

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        deltas: list[Delta] = []
        for before, marker in self._text.push(text):
            if before:
                self._read(before, deltas)
            if marker in (CHANNEL, START):
                self._end(deltas)
                self._header = ((self._header or "") + marker)[:_MAX_HEADER]
            elif marker == MESSAGE:
                self._begin(deltas)
            elif marker == "<|constrain|>":
                continue
            elif marker:
                self._end(deltas)
                self._channel = "final"
        return deltas

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        deltas: list[Delta] = []
        rest = self._text.finish()
        if rest:
            self._read(rest, deltas)
        self._end(deltas)
        return deltas

    def _read(self, text: str, deltas: list[Delta]) -> None:
        if self._header is not None:
            self._header = (self._header + text)[:_MAX_HEADER]
        elif self._called:
            text = text.lstrip() if self._blank else text
            self._blank = self._blank and not text
            if text:
                deltas.append(CallArguments(self._calls, text))
        elif self._channel == "analysis":
            deltas.append(Reasoning(text))
        else:
            deltas.append(Content(text))

    def _begin(self, deltas: list[Delta]) -> None:
        """The message's text begins: its header says what it is."""
        header, self._header = self._header or "", None
        before, _, after = header.rpartition(CHANNEL)
        self._channel = (after.split() or ["final"])[0]
        recipient = _RECIPIENT.search(after) or _RECIPIENT.search(before)
        self._called = self._blank = recipient is not None
        if recipient is not None:
            deltas.append(CallBegins(self._calls, recipient[1]))

    def _end(self, deltas: list[Delta]) -> None:
        if self._called:
            if self._blank:
                deltas.append(CallArguments(self._calls, "{}"))
            self._calls += 1
            self._called = False


class HarmonyReasoning:
    """Counts the tokens of messages on the channel of analysis, their marks included."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._header: str | None = None
        self._header_tokens = 0
        self._inside = False
        self.count = 0

    def push(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            text = self._texts.text(token_id)
            if text == CHANNEL:
                self._inside, self._header, self._header_tokens = False, "", 0
            self.count += self._inside
            if self._header is not None:
                self._header_tokens += 1
                if text == MESSAGE:
                    self._inside = self._header.strip() == "analysis"
                    self.count += self._header_tokens * self._inside
                    self._header = None
                elif text != CHANNEL:
                    self._header = (self._header + text)[:_MAX_HEADER]
            elif text in _MARKERS:
                self._inside = False
