"""Tokens as log-probabilities name them: a text, and its bytes."""

from __future__ import annotations

from paddock.runtime.text.tokenizer import Tokenizer


class TokenTexts:
    """The text of single tokens, remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, bytes]] = {}  # no more than the vocabulary

    def text(self, token_id: int) -> str:
        """U+FFFD stands for what is no whole character."""
        return self._look(token_id)[0]

    def shown(self, token_id: int) -> int:
        """Characters that it takes in a text, where special tokens take none."""
        return 0 if self._tokenizer.is_special(token_id) else len(self.text(token_id))

    def utf8(self, token_id: int) -> list[int]:
        return list(self._look(token_id)[1])

    def _look(self, token_id: int) -> tuple[str, bytes]:
        found = self._known.get(token_id)
        if found is None:
            data = self._tokenizer.token_bytes(token_id)
            found = self._known[token_id] = (data.decode("utf-8", "replace"), data)
        return found
