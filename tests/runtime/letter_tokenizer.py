"""A tokenizer for tests, small enough to be wrong about nothing."""

from __future__ import annotations

from collections.abc import Sequence

END = 0
PIECES = [
    "<end>",
    "a",
    "b",
    "c",
    "ab",
    "bc",
    "abc",
    "ca",
    " ",
    "\u00e9",
    "\u4e2d",
    "aa",
    "bb",
    "cc",
    "?",
    "!",
]
"""Token 0 ends a text; the others are letters and pieces of them that overlap in stop strings."""

HALVES = {len(PIECES): b"\xc3", len(PIECES) + 1: b"\xa9"}
"""Tokens that are halves of a character."""

VOCAB_SIZE = len(PIECES) + len(HALVES)


def text_of(token_ids: Sequence[int], *, whole: bool = False) -> str:
    """The text of these tokens, decoded at once. `whole`: without half a character at the end."""
    text = b"".join(_bytes_of(token_id) for token_id in token_ids)
    return (text.removesuffix(b"\xc3") if whole else text).decode("utf-8", "replace")


def _bytes_of(token_id: int) -> bytes:
    if token_id == END:
        return b""
    return HALVES.get(token_id) or PIECES[token_id].encode()


class LetterTokenizer:
    """Has what `paddock.runtime.engine_loop.TextCodec` asks for."""

    eos_token_ids = frozenset({END})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """One token a letter."""
        return [PIECES.index(letter) for letter in text]

    def incremental(
        self, prompt_token_ids: Sequence[int], skip_special_tokens: bool = True
    ) -> LetterDecoder:
        return LetterDecoder()


class LetterDecoder:
    """Gives a character as soon as all its bytes are there."""

    def __init__(self) -> None:
        self._bytes = b""

    def push(self, token_id: int) -> str:
        self._bytes += _bytes_of(token_id)
        whole = self._bytes.removesuffix(b"\xc3")
        self._bytes = self._bytes[len(whole) :]
        return whole.decode("utf-8", "replace")

    def finish(self) -> str:
        rest, self._bytes = self._bytes, b""
        return rest.decode("utf-8", "replace")
