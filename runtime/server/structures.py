"""What the API's fields ask a text to be, within the server's bounds."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from paddock.runtime.sampling.grammar import JSON_FORM
from paddock.runtime.sampling.structured_outputs import StructuredOutputs
from paddock.runtime.server.api_errors import ApiError
from paddock.runtime.server.settings import ServerSettings


def structured(settings: ServerSettings, param: str, **wanted: Any) -> StructuredOutputs:
    """One of `StructuredOutputs`' fields, its size checked. Raises `ApiError` naming `param`."""
    for value in wanted.values():
        check_size(settings, param, value)
    try:
        return StructuredOutputs(**wanted)
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ApiError(400, f"{param}: {message}", param=param) from None


def check_size(settings: ServerSettings, param: str, value: Any) -> None:
    """Raise where a schema is larger, or nested more deeply, than the server takes."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > settings.max_schema_kib * 1024:
        raise ApiError(
            400,
            f"{param}: {len(text) / 1024:.1f} KiB; more than {settings.max_schema_kib:g} KiB are"
            " not taken",
            param=param,
        )
    # A text is measured as it is written, without reading it: brackets in strings count too.
    depth = _depth_of_text(value) if isinstance(value, str) else _depth(value)
    if depth > settings.max_schema_depth:
        raise ApiError(
            400,
            f"{param}: nested {depth} deep; more than {settings.max_schema_depth} is not taken",
            param=param,
        )


class Rules:
    """A grammar made of parts: reasoning, which is free, and then calls or a text."""

    def __init__(self) -> None:
        self._answers: list[str] = []
        self._rules: list[str] = []
        self._start = "start: answer"

    def calls(self, rules: str) -> None:
        """The answer may be tool calls; the rules begin at `calls`."""
        self._answers.append("calls")
        self._rules.append(rules)

    def text(self, wanted: StructuredOutputs) -> None:
        """The answer may be this text."""
        self._answers.append("text")
        self._rules.append(f"text: {_lark(wanted)}")

    def words(self, rules: str) -> None:
        """The answer may be words without a call; the rules begin at `words`."""
        self._answers.append("words")
        self._rules.append(rules)

    def thinking(self, *, opened: bool) -> None:
        """Reasoning may come first; opened: the prompt has begun it, so it does."""
        self._start = "start: think answer" if opened else "start: think? answer"
        begin = "" if opened else '"<think>" '
        self._rules.append(f"think: {begin}thought /[ \\t\\n]*/")
        self._rules.append('thought[suffix="</think>"]: /(.|\\n)*/')

    def structure(self) -> StructuredOutputs:
        answer = f"answer: {' | '.join(self._answers)}"
        return StructuredOutputs.model_validate(
            {"grammar": "\n".join([self._start, answer, *self._rules]) + "\n"}
        )


def _lark(wanted: StructuredOutputs) -> str:
    if wanted.regex is not None:
        from llguidance import regex_to_lark

        return f"/{regex_to_lark(wanted.regex)}/"
    if wanted.choice is not None:
        return " | ".join(json.dumps(text, ensure_ascii=False) for text in wanted.choice)
    schema: Any = {"type": "object"} if wanted.json_object else wanted.json_schema
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ApiError(400, f"the JSON schema is not JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ApiError(400, f"a JSON schema is an object, found {type(schema).__name__}")
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_FORM})}"


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; JSON as it is read is less than 200 deep."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _depth_of_text(text: str) -> int:
    deepest = depth = 0
    for character in text:
        if character in "{[(":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}])":
            depth = max(depth - 1, 0)
    return deepest
