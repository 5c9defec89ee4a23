"""Text to token ids and back, as a checkpoint's tokenizer.json defines it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from paddock.runtime.errors import RequestError
from paddock.runtime.strict_json import TokenizerError, read_bytes
from paddock.runtime.text.chat_template import ChatTemplates, Message
from paddock.runtime.text.detokenizer import Detokenizer, IncrementalDecoder
from paddock.runtime.text.tokenizer_files import Token, TokenizerFiles, read_tokenizer_files

__all__ = ["Tokenizer", "TokenizerError"]

_OTHER_FILES = (
    "tokenizer.model",
    "tiktoken.model",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""What tokenizers are stored as, where not as tokenizer.json."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A whole input of an encoder: a list each, as long as there are tokens."""

    ids: list[int]
    type_ids: list[int]
    """0 in the first text, 1 in the second."""
    offsets: list[tuple[int, int]]
    """Characters of its text that a token stands for."""
    special: list[bool]
    truncated: bool
    """Something was cut off."""


class Tokenizer:
    """A checkpoint's tokenizer, with its special tokens and chat templates.

    All methods may be called from any thread.
    """

    def __init__(
        self, folder: Path | str, *, chat_template: str | None = None, writes: bool = True
    ) -> None:
        """Read a checkpoint folder.

        chat_template: the text of a template to use in place of the checkpoint's own.
        writes: text will be made token by token, which not every tokenizer can (`incremental`);
        encoders' need not.

        Whether begin and end tokens are added is said by the post-processor of tokenizer.json
        alone, as in transformers 5: `add_bos_token` in tokenizer_config.json counts no more.
        Raises `TokenizerError`, which names the file and the field.
        """
        folder = Path(folder)
        self._path = folder / "tokenizer.json"
        if not self._path.is_file():
            raise TokenizerError(_how_to_convert(folder))
        files = read_tokenizer_files(folder)
        self._backend = _load(self._path)
        _add_special_tokens(self._backend, files, folder)
        self._text = Detokenizer(self._backend, str(self._path)) if writes else None
        self._special_tokens = {name: token.content for name, token in files.named_tokens.items()}
        self.chat_templates = ChatTemplates(
            files.chat_templates if chat_template is None else {"default": chat_template},
            self._special_tokens,
            str(folder) if chat_template is None else "chat_template",
        )
        self.vocab_size = _vocab_size(self._backend)
        """One more than the highest token id; a model's vocabulary may be padded beyond it."""
        self.max_length = files.max_length
        """Tokens that the model takes, where tokenizer_config.json says so."""
        bos = self._id_of("bos_token")
        self.bos_token_id = files.bos_token_id if bos is None else bos
        eos = self._id_of("eos_token")
        self.eos_token_ids = files.eos_token_ids | ({eos} if eos is not None else set())
        """Ids that end a text: the tokenizer's, and those of (generation_)config.json."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """By name, e.g. `eos_token`: what chat templates know them by."""
        return self._special_tokens

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; special tokens written out in the text become themselves.

        add_special_tokens: also add what the checkpoint's tokenizer adds, mostly one at the
        beginning. Raises `RequestError` for text that is no Unicode (lone surrogates).
        """
        _check_text(text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_within(
        self,
        text: str,
        pair: str | None = None,
        *,
        limit: int,
        side: Literal["right", "left"] = "right",
    ) -> Encoded:
        """A text, or two, with the special tokens of the checkpoint, cut to `limit` tokens.

        The longer of two texts is cut first, at the end or, with `side` left, at the beginning,
        as transformers' `longest_first`. Raises `RequestError` as `encode` does.
        """
        texts = [text] if pair is None else [text, pair]
        for each in texts:
            _check_text(each)
        parts = [self._backend.encode(each, add_special_tokens=False) for each in texts]
        lengths = [len(part.ids) for part in parts]
        room = max(limit - self._backend.num_special_tokens_to_add(pair is not None), 0)
        for part, kept in zip(parts, _shortened(lengths, room), strict=True):
            part.truncate(kept, direction=side)
        whole = self._backend.post_process(parts[0], parts[1] if len(parts) > 1 else None)
        return Encoded(
            whole.ids,
            whole.type_ids,
            whole.offsets,
            [bool(special) for special in whole.special_tokens_mask],
            truncated=sum(lengths) > room,
        )

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids outside the vocabulary have none."""
        try:
            text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError):
            raise RequestError(
                "token ids: expected integers from 0 to 4294967295, found something else"
            ) from None
        return text

    def incremental(
        self, prompt_token_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> IncrementalDecoder:
        """A decoder for the tokens that follow `prompt_token_ids`, one sequence's."""
        return self._detokenizer.start(prompt_token_ids, skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **options: Any
    ) -> str:
        """The text of a conversation: see `ChatTemplates.render`."""
        return self.chat_templates.render(
            messages, add_generation_prompt=add_generation_prompt, **options
        )

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **options: Any
    ) -> list[int]:
        """The token ids of a conversation; the template writes the special tokens itself."""
        text = self.apply_chat_template(messages, add_generation_prompt, **options)
        return self.encode(text, add_special_tokens=False)

    @property
    def _detokenizer(self) -> Detokenizer:
        if self._text is None:
            raise TokenizerError(f"{self._path}: was read for an encoder, which writes no text")
        return self._text

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it (`Ġthe`); None outside the vocabulary."""
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, as UTF-8; part of a character, for some."""
        return self._detokenizer.token_bytes(token_id)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None where there is none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves it out of the text."""
        return self._detokenizer.is_special(token_id)

    def to_json(self) -> str:
        """The tokenizer as tokenizer.json describes it, special tokens added."""
        text: str = self._backend.to_str()
        return text

    def _id_of(self, name: str) -> int | None:
        content = self._special_tokens.get(name)
        if content is None:
            return None
        token_id: int | None = self._backend.token_to_id(content)
        return token_id


def _check_text(text: object) -> None:
    """Raise `RequestError` unless it is text that has UTF-8."""
    if not isinstance(text, str):
        raise RequestError(f"the prompt: expected text, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt: character {error.start} is half of a surrogate pair "
            f"(U+{ord(text[error.start]):04X}), which is not text; it may come from bytes that "
            "are not UTF-8"
        ) from None


def _shortened(lengths: Sequence[int], room: int) -> list[int]:
    """How much is kept of each text, together no more than `room`: the longer one is cut first.

    As the tokenizers library has it, to the odd token: the later text keeps one more of an odd
    room where both are longer than its half.
    """
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    shorter, longer = sorted(lengths)
    if shorter <= room // 2:
        longer = room - shorter
    else:
        shorter, longer = room // 2, room - room // 2
    return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]


def _load(path: Path) -> Backend:
    """Read tokenizer.json, whose own truncation and padding do not count."""
    data = read_bytes(path)
    try:
        backend = Backend.from_buffer(data)
    except BaseException as error:
        # A panic in the library's Rust code is no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise TokenizerError(
            f"{path}: not a tokenizer that the tokenizers library can read: {reason}"
        ) from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def _add_special_tokens(backend: Backend, files: TokenizerFiles, folder: Path) -> None:
    """Make special tokens of those that tokenizer.json does not list among its added ones.

    As transformers' `TokenizersBackend.__init__` does it; but a token that then has another id
    than the one stated for it is an error here.
    """
    contents = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = []
    for _, token in sorted(files.added_tokens.items()):
        if token.content not in contents:
            contents.add(token.content)
            missing.append(_added(token))
    described = {token.content: token for token in files.added_tokens.values()}
    for token in [*files.named_tokens.values(), *files.unnamed_tokens]:
        if token.content not in contents:
            contents.add(token.content)
            special = described.get(token.content, token).model_copy(update={"special": True})
            missing.append(_added(special))
    if missing:
        backend.add_tokens(missing)
    for token_id, token in files.added_tokens.items():
        found = backend.token_to_id(token.content)
        if found != token_id:
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder.{token_id}: the token "
                f"{token.content!r} has id {found} in tokenizer.json"
            )


def _added(token: Token) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _vocab_size(backend: Backend) -> int:
    added = max(backend.get_added_tokens_decoder(), default=-1)
    return max(backend.get_vocab_size(with_added_tokens=True), added + 1)


def _how_to_convert(folder: Path) -> str:
    """The message for a folder without tokenizer.json."""
    if not folder.is_dir():
        return f"{folder}: no such checkpoint folder"
    others = [name for name in _OTHER_FILES if (folder / name).is_file()]
    if not others:
        return f"{folder}: no tokenizer.json, nor any other tokenizer file"
    return (
        f"{folder}: no tokenizer.json, only {', '.join(others)}; convert it once, where "
        'transformers is installed: python -c "from transformers import AutoTokenizer as T; '
        f"T.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )
