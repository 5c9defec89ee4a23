"""What a checkpoint's small files say about its tokenizer: special tokens, ends, chat templates.

Read as transformers 5 reads them (`tokenization_utils_base.py`, `_from_pretrained`), but strictly:
a field of the wrong type is an error that names file and field.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from paddock.runtime.strict_json import TokenizerError, read_model, read_text

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MAX_TEMPLATE_BYTES = 4 << 20

Model = TypeVar("Model", bound=BaseModel)


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


TokenIds = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], BeforeValidator(_as_list)]
"""One id, several, or none."""


class Token(BaseModel):
    """A special token with how it is found in text."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    content: Annotated[str, Field(min_length=1)]
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = True


def _from_string(value: Any) -> Any:
    return {"content": value} if isinstance(value, str) else value


SpecialToken = Annotated[Token, BeforeValidator(_from_string)]


class _NamedTemplate(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    template: str


class _SpecialTokensMap(BaseModel):
    """special_tokens_map.json, and the part of tokenizer_config.json that repeats it."""

    model_config = ConfigDict(extra="allow")

    bos_token: SpecialToken | None = None
    eos_token: SpecialToken | None = None
    unk_token: SpecialToken | None = None
    sep_token: SpecialToken | None = None
    pad_token: SpecialToken | None = None
    cls_token: SpecialToken | None = None
    mask_token: SpecialToken | None = None
    additional_special_tokens: list[SpecialToken] | None = None
    extra_special_tokens: list[SpecialToken] | dict[str, SpecialToken] | None = None

    def named(self) -> dict[str, Token]:
        """`bos_token` and the like, those of the model's own (`image_token`) included."""
        found = {name: getattr(self, name) for name in NAMED_TOKENS if getattr(self, name)}
        for name, value in (self.model_extra or {}).items():
            if name.endswith("_token") and isinstance(value, str) and value:
                found[name] = Token(content=value)
        if isinstance(self.extra_special_tokens, dict):
            found |= self.extra_special_tokens
        return found

    def unnamed(self) -> list[Token]:
        extra = self.extra_special_tokens
        if isinstance(extra, list) and extra:
            return extra
        return self.additional_special_tokens or []


class _TokenizerConfig(_SpecialTokensMap):
    """tokenizer_config.json."""

    model_max_length: float | None = None
    added_tokens_decoder: dict[Annotated[int, Field(ge=0)], Token] | None = None
    chat_template: Annotated[str, Field(strict=True)] | list[_NamedTemplate] | None = None


class _ProcessorTemplate(BaseModel):
    """chat_template.json, which older processors of images keep beside the tokenizer's files."""

    model_config = ConfigDict(extra="ignore", strict=True)

    chat_template: str | None = None


class _Ids(BaseModel):
    """The token ids of config.json and generation_config.json."""

    model_config = ConfigDict(extra="ignore")

    bos_token_id: TokenIds = Field(default_factory=list)
    eos_token_id: TokenIds = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _one_of_text_config(cls, data: Any) -> Any:
        """Models of several modalities keep what is about text in an object of its own."""
        if isinstance(data, dict) and isinstance(data.get("text_config"), dict):
            return {**data["text_config"], **data}
        return data


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files besides tokenizer.json say."""

    named_tokens: dict[str, Token]
    """By name, e.g. `eos_token`."""
    unnamed_tokens: list[Token]
    added_tokens: dict[int, Token]
    """By the id they should have; not all of them need be in tokenizer.json."""
    bos_token_id: int | None
    eos_token_ids: frozenset[int]
    """Of config.json and generation_config.json; the tokenizer's own `eos_token` is one more."""
    chat_templates: dict[str, str]
    """By name; the usual one is `default`."""
    max_length: int | None
    """Tokens that the model takes, where the file says so; older files say 1e30 for unknown."""


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read what there is of the small files. Raises `TokenizerError`."""
    config = _read(folder, "tokenizer_config.json", _TokenizerConfig) or _TokenizerConfig()
    named, unnamed = config.named(), config.unnamed()
    if config.added_tokens_decoder is None:
        old = _read(folder, "special_tokens_map.json", _SpecialTokensMap)
        if old is not None:
            named |= old.named()
            unnamed = old.unnamed() or unnamed
    ids = [_read(folder, name, _Ids) for name in ("generation_config.json", "config.json")]
    found = [entry for entry in ids if entry is not None]
    return TokenizerFiles(
        named_tokens=named,
        unnamed_tokens=unnamed,
        added_tokens=config.added_tokens_decoder or {},
        bos_token_id=next((id_ for e in found for id_ in e.bos_token_id), None),
        eos_token_ids=frozenset(id_ for entry in found for id_ in entry.eos_token_id),
        chat_templates=_chat_templates(folder, config),
        max_length=_length(config.model_max_length),
    )


def _length(tokens: float | None) -> int | None:
    return int(tokens) if tokens is not None and 0 < tokens < 1e9 else None


def _read(folder: Path, name: str, model: type[Model]) -> Model | None:
    path = folder / name
    return read_model(path, model) if path.is_file() else None


def _chat_templates(folder: Path, config: _TokenizerConfig) -> dict[str, str]:
    """Files of their own come before what tokenizer_config.json holds."""
    templates = {}
    single = folder / "chat_template.jinja"
    if single.is_file():
        templates["default"] = read_text(single, _MAX_TEMPLATE_BYTES)
    more = folder / "additional_chat_templates"
    if more.is_dir():
        for path in sorted(more.glob("*.jinja")):
            templates[path.stem] = read_text(path, _MAX_TEMPLATE_BYTES)
    if templates:
        return templates
    processors = _read(folder, "chat_template.json", _ProcessorTemplate)
    if processors is not None and processors.chat_template is not None:
        return {"default": processors.chat_template}
    if isinstance(config.chat_template, str):
        return {"default": config.chat_template}
    for entry in config.chat_template or []:
        if entry.name in templates:
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'}: chat_template: the name {entry.name!r} "
                "occurs twice"
            )
        templates[entry.name] = entry.template
    return templates
