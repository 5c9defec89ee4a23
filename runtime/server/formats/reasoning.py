"""Telling a model's reasoning, `<think>...</think>`, from its answer."""

from __future__ import annotations

from collections.abc import Iterable

from paddock.runtime.server.formats.tool_deltas import Delta, OutputParser, Reasoning, held_back
from paddock.runtime.server.token_texts import TokenTexts

OPENING, CLOSING = "<think>", "</think>"


def template_reasons(template: str) -> bool:
    """Whether a chat template knows reasoning."""
    return CLOSING in template


def prompt_opens_reasoning(prompt: str) -> bool:
    """Whether the prompt ends inside an open `<think>`, so that the model begins with it."""
    return prompt.rfind(OPENING) > prompt.rfind(CLOSING) and prompt.rstrip().endswith(OPENING)


class ReasoningParser:
    """Splits off reasoning at the beginning; the rest goes to the parser after it."""

    def __init__(self, after: OutputParser, *, opened: bool) -> None:
        """opened: the prompt has opened the reasoning already."""
        self._after = after
        self._text = ""
        self._inside = opened
        self._over = False
        self._fresh = True  # nothing of the reasoning, or of the answer, was yielded yet

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        if self._over:
            return self._answer(text)
        self._text += text
        if not self._inside:
            start = self._text.lstrip()
            if not start.startswith(OPENING):
                if OPENING.startswith(start):
                    return []
                return self._begin_answer([])
            self._inside = True
            self._text = start[len(OPENING) :]
        place = self._text.find(CLOSING)
        if place >= 0:
            reasoning = self._reasoning(self._text[:place].rstrip())
            self._text = self._text[place + len(CLOSING) :]
            self._fresh = True
            return self._begin_answer(reasoning)
        # White space before the end is not part of it, so it waits for what follows.
        cut = len(self._text) - held_back(self._text, CLOSING)
        cut = len(self._text[:cut].rstrip())
        reasoning = self._reasoning(self._text[:cut])
        self._text = self._text[cut:]
        return reasoning

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        if self._over:
            return self._after.finish()
        text, self._text = self._text, ""
        if self._inside:
            return self._reasoning(text)
        return [*self._after.push(text), *self._after.finish()]

    def _begin_answer(self, before: list[Delta]) -> list[Delta]:
        self._over = True
        text, self._text = self._text, ""
        self._fresh = self._inside  # an answer after reasoning begins without line breaks
        return [*before, *self._answer(text)]

    def _answer(self, text: str) -> list[Delta]:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return self._after.push(text) if text else []

    def _reasoning(self, text: str) -> list[Delta]:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return [Reasoning(text)] if text else []


class ReasoningTokens:
    """Counts the tokens of a sequence's reasoning, its marks included."""

    def __init__(self, texts: TokenTexts, *, opened: bool, special: bool) -> None:
        """opened: as for `ReasoningParser`; special: special tokens are part of the text."""
        self._texts = texts
        self._special = special
        self._inside = opened
        self._over = False
        self._end = b""  # of the text so far: as much as decides what comes next
        self._before = 0  # tokens of an opening mark that is not whole yet
        self.count = 0

    def push(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if self._over:
                return
            if self._special or self._texts.shown(token_id):
                self._end += bytes(self._texts.utf8(token_id))
            if self._inside:
                self.count += 1
            else:
                self._before += 1
                self._look_for_opening()
            if self._inside:
                self._over = _CLOSING in self._end
                self._end = self._end[-len(_CLOSING) :]

    def _look_for_opening(self) -> None:
        start = self._end.lstrip()
        if start.startswith(_OPENING):
            self._inside = True
            self.count = self._before
        elif not _OPENING.startswith(start):
            self._over = True


_OPENING, _CLOSING = OPENING.encode(), CLOSING.encode()
