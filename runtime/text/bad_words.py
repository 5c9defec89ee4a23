"""The token sequences that a forbidden text may come as."""

from collections.abc import Iterable
from typing import Protocol


class Encode(Protocol):
    """A tokenizer's `encode`."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


def bad_words_token_ids(words: Iterable[str], encode: Encode) -> list[list[int]]:
    """Each word as tokenized alone and after a space, which most vocabularies tell apart.

    As vLLM's `SamplingParams.update_from_tokenizer` does it.
    """
    found: list[list[int]] = []
    for word in words:
        bare = word.lstrip() or word
        for text in (bare, f" {bare}"):
            ids = encode(text, add_special_tokens=False)
            if ids and ids not in found:
                found.append(ids)
    return found
