"""What a parser of a model's output yields: pieces of reasoning, content and tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A tool call; the pieces of its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments, which together are JSON (where the model wrote any)."""

    index: int
    text: str


Delta = Content | Reasoning | CallBegins | CallArguments


class OutputParser(Protocol):
    """Stateful, for one sequence. It must not raise, whatever the model writes."""

    def push(self, text: str) -> list[Delta]:
        """What is certain after this piece of text."""

    def finish(self) -> list[Delta]:
        """What was held back, when no more comes."""


class OneCall:
    """A parser of which no call but the first is passed on."""

    def __init__(self, parser: OutputParser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Delta]:
        return _first_call(self._parser.push(text))

    def finish(self) -> list[Delta]:
        return _first_call(self._parser.finish())


def _first_call(deltas: list[Delta]) -> list[Delta]:
    return [
        delta
        for delta in deltas
        if not isinstance(delta, CallBegins | CallArguments) or delta.index == 0
    ]


def held_back(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def joined(deltas: list[Delta]) -> list[Delta]:
    """Neighbours of a kind as one."""
    result: list[Delta] = []
    for delta in deltas:
        last = result[-1] if result else None
        match last, delta:
            case Content(before), Content(text):
                result[-1] = Content(before + text)
            case Reasoning(before), Reasoning(text):
                result[-1] = Reasoning(before + text)
            case CallArguments(index, before), CallArguments(other, text) if index == other:
                result[-1] = CallArguments(index, before + text)
            case _:
                result.append(delta)
    return result
