"""Forbidden texts are forbidden at the start of a word too."""

from __future__ import annotations

from paddock.runtime.text.bad_words import bad_words_token_ids

WORDS = {"cat": 1, " cat": 2, " ": 3, "  ": 4}


def encode(text: str, add_special_tokens: bool = True) -> list[int]:
    assert not add_special_tokens
    return [WORDS[text]] if text in WORDS else list(text.encode())


def test_alone_and_after_a_space() -> None:
    assert bad_words_token_ids(["cat"], encode) == [[1], [2]]
    assert bad_words_token_ids([" cat"], encode) == [[1], [2]]
    assert bad_words_token_ids(["ab", "ab"], encode) == [[97, 98], [32, 97, 98]]


def test_white_space_itself() -> None:
    assert bad_words_token_ids([" "], encode) == [[3], [4]]
