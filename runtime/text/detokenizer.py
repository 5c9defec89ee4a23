"""Token ids to text, piece by piece, never half a character, equal to decoding all at once.

A tokenizer's decoder is a chain of small steps (the `tokenizers` library calls them decoders).
Each is done here as one that takes tokens as they come and passes on what later tokens cannot
change any more:

- ByteLevel: tokens spell bytes; an incomplete character waits, impossible bytes become U+FFFD;
- ByteFallback: tokens like `<0xE2>` are bytes. A run of them is one text if all of it is UTF-8,
  else one U+FFFD per byte, so a run waits for its end;
- Replace, Metaspace, Strip, Fuse: what they say, the last two at the start of the text.

The sources are those of `tokenizers`, `src/decoders` and `src/pre_tokenizers`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from tokenizers import Tokenizer as Backend

from paddock.runtime.strict_json import TokenizerError

_KEPT = 1 << 16
"""Tokens whose texts are kept once they were looked up."""
_CONTEXT = 16
"""Tokens of the prompt from which the state at its end is found: a character is 4 bytes at most."""
_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>")
"""As Rust's `u8::from_str_radix` reads the two characters: `+f` is a number to it."""


class Stage(Protocol):
    """One step of a decoder; stateful, for one sequence."""

    def push(self, token: str) -> list[str]:
        """The tokens that are final now."""

    def finish(self) -> list[str]:
        """What was held back."""


class IncrementalDecoder:
    """One sequence's text. What all calls return, joined, is the text of the generated tokens.

    With an empty prompt that is `Tokenizer.decode` of all tokens, whatever they are; after a
    prompt it is what they add to the prompt's text (so a word's leading space is kept).
    """

    def __init__(self, token_of: Callable[[int], str | None], stages: Sequence[Stage]) -> None:
        """token_of: a token's text in the vocabulary; None for ids that add no text."""
        self._token_of = token_of
        self._stages = stages

    def push(self, token_id: int) -> str:
        """The text that is final now: often a word, nothing in the middle of a character."""
        token = self._token_of(token_id)
        if token is None:
            return ""
        tokens = [token]
        for stage in self._stages:
            if len(tokens) == 1:
                tokens = stage.push(tokens[0])
            else:
                tokens = [after for before in tokens for after in stage.push(before)]
        return "".join(tokens)

    def finish(self) -> str:
        """The rest, after the last token; incomplete characters become U+FFFD."""
        tokens: list[str] = []
        for stage in self._stages:
            tokens = [after for before in tokens for after in stage.push(before)] + stage.finish()
        return "".join(tokens)


class Detokenizer:
    """Makes the incremental decoders of one tokenizer."""

    def __init__(self, backend: Backend, path: str) -> None:
        """path: what errors call the tokenizer. Raises `TokenizerError` for unknown decoders."""
        self._backend = backend
        self._plan = _plan(backend, path)
        self._special = special = frozenset(
            id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special
        )
        # Every generated token is looked up, mostly one of a few thousand.
        self._token = token = lru_cache(_KEPT)(backend.id_to_token)
        self._shown_token = lru_cache(_KEPT)(
            lambda token_id: None if token_id in special else token(token_id)
        )

    def start(
        self, prompt_token_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> IncrementalDecoder:
        """A decoder for what follows the prompt.

        Of the prompt only the end is looked at, so this takes no longer for a long one.
        """
        token_of = self._shown_token if skip_special_tokens else self._token

        decoder = IncrementalDecoder(token_of, [make() for make in self._plan])
        for token_id in self._context(prompt_token_ids, token_of):
            decoder.push(token_id)
        return decoder

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to a text, wherever it stands but at the start.

        Joined, the bytes of a text's tokens are its UTF-8, less what is special at its beginning.
        Empty for ids outside the vocabulary.
        """
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        stages = [make() for make in self._plan]
        for stage in stages:
            match stage:
                case _ByteLevel():
                    return _byte_level_bytes(token)
                case _ByteFallback() if byte := _BYTE_TOKEN.fullmatch(token):
                    return bytes([int(byte[1], 16)])
                case _Replace():
                    token = token.replace(stage.old, stage.new)
                case _Metaspace():
                    token = token.replace(stage.replacement, " ")
                case _Spaced():
                    token = " " + token
        return token.encode()

    def _context(
        self, prompt_token_ids: Sequence[int], token_of: Callable[[int], str | None]
    ) -> list[int]:
        """The last tokens of the prompt that the state after it depends on."""
        tail: list[int] = []
        for token_id in reversed(prompt_token_ids):
            token = token_of(token_id)
            if token is not None:
                tail.append(token_id)
                # A run of byte tokens has to be seen from its start.
                if len(tail) >= _CONTEXT and not _BYTE_TOKEN.fullmatch(token):
                    break
        return tail[::-1]


@dataclass
class _ByteLevel:
    _utf8: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def push(self, token: str) -> list[str]:
        return [self._utf8.decode(_byte_level_bytes(token))]

    def finish(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


@lru_cache(_KEPT)
def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:  # not of the alphabet: an added token, which is text as it stands
        return token.encode()


@dataclass
class _ByteFallback:
    _run: bytearray = field(default_factory=bytearray)

    def push(self, token: str) -> list[str]:
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte:
            self._run.append(int(byte[1], 16))
            return []
        return [*self.finish(), token]

    def finish(self) -> list[str]:
        if not self._run:
            return []
        run = bytes(self._run)
        self._run.clear()
        try:
            return [run.decode()]
        except UnicodeDecodeError:
            return ["\N{REPLACEMENT CHARACTER}"] * len(run)


@dataclass
class _Replace:
    old: str
    new: str

    def push(self, token: str) -> list[str]:
        return [token.replace(self.old, self.new)]

    def finish(self) -> list[str]:
        return []


@dataclass
class _Metaspace:
    """`replacement` becomes a space, and nothing in the first token where one was put there."""

    replacement: str
    prepended: bool
    _first: bool = True

    def push(self, token: str) -> list[str]:
        space = "" if self._first and self.prepended else " "
        self._first = False
        return [token.replace(self.replacement, space)]

    def finish(self) -> list[str]:
        return []


@dataclass
class _StripEach:
    """Removes up to `count` of `character` from the start of each token."""

    character: str
    count: int

    def push(self, token: str) -> list[str]:
        return [_without_first(token, self.character, self.count)]

    def finish(self) -> list[str]:
        return []


@dataclass
class _StripText:
    """Removes up to `count` of `character` from the start of the text, which comes in pieces."""

    character: str
    count: int

    def push(self, token: str) -> list[str]:
        if self.count and token:
            rest = _without_first(token, self.character, self.count)
            self.count = 0 if rest else self.count - len(token)
            return [rest]
        return [token]

    def finish(self) -> list[str]:
        return []


@dataclass
class _Spaced:
    """Tokens of a tokenizer without a decoder, which are words."""

    _first: bool = True

    def push(self, token: str) -> list[str]:
        space = "" if self._first else " "
        self._first = False
        return [space + token]

    def finish(self) -> list[str]:
        return []


def _without_first(text: str, character: str, count: int) -> str:
    cut = 0
    while cut < min(count, len(text)) and text[cut] == character:
        cut += 1
    return text[cut:]


def _plan(backend: Backend, path: str) -> list[Callable[[], Stage]]:
    """How to make the stages of a decoder, from the library's own description of it."""
    if backend.decoder is None:
        return [_Spaced]
    description = json.loads(backend.decoder.__getstate__())
    plan: list[Callable[[], Stage]] = []
    fused = False
    for step in _steps(description):
        make = None if fused and step["type"] not in ("Fuse", "Strip") else _stage(step, fused)
        if make is not None:
            plan.append(make)
        elif step["type"] != "Fuse":
            shown = json.dumps(step, ensure_ascii=False)
            where = " after the tokens are joined" if fused else ""
            raise TokenizerError(
                f"{path}: decoder: text cannot be made token by token with {shown}{where}; known "
                "are ByteLevel, ByteFallback, Replace (of a string), Metaspace, Fuse and Strip (at "
                "the start)"
            )
        fused = fused or step["type"] in ("Fuse", "ByteLevel")
    return plan


def _steps(description: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of nested sequences, in order."""
    if description["type"] != "Sequence":
        return [description]
    return [step for inner in description["decoders"] for step in _steps(inner)]


def _stage(step: dict[str, Any], fused: bool) -> Callable[[], Stage] | None:
    """How to make a step's stage; None for those that need none (Fuse) or are unknown."""
    match step:
        case {"type": "ByteLevel"}:
            return _ByteLevel
        case {"type": "ByteFallback"}:
            return _ByteFallback
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return lambda: _Replace(old, new)
        case {"type": "Metaspace", "replacement": str(replacement), "prepend_scheme": scheme}:
            return lambda: _Metaspace(replacement, scheme != "never")
        case {"type": "Strip", "content": str(character), "start": int(count), "stop": 0}:
            strip = _StripText if fused else _StripEach
            return lambda: strip(character, count)
    return None


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of byte-level vocabularies stands for.

    GPT-2's `bytes_to_unicode`: printable characters stand for themselves, the other bytes for
    the characters from U+0100 on, so that no token holds whitespace or control characters.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
