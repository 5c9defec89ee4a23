"""The prompts of a `generate`: from the command line, stdin or a file, checked before any work."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddock.commands.arguments import UsageError


@dataclass(frozen=True)
class Prompt:
    """One prompt, and what was said about it alone."""

    content: str | list[int] | list[dict[str, Any]]
    """Text, token ids, or the messages of a chat."""
    origin: str
    """Where it came from, for errors: `--prompt`, `prompts.txt:7`."""
    id: Any = None
    """The `id` of a JSON line, which comes back with the answer."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Sampling settings of this prompt, over those of the command line."""


KEYS = ("prompt", "messages", "id", "sampling")


def gather(texts: Sequence[str], file: str | None) -> list[Prompt]:
    """Every prompt, in order: those of `--prompt`, then the file's.

    Where neither was given, and stdin is no terminal, stdin is the prompt. Raises `UsageError`
    for an empty prompt, text that is not UTF-8, and a line of JSON that cannot be meant.
    """
    if not texts and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError(
                "no prompt; give --prompt TEXT, --prompts-file FILE, or a text on stdin"
            )
        texts = ["-"]
    if texts.count("-") + (file == "-") > 1:
        raise UsageError("stdin can be read once: give `-` to --prompt or to --prompts-file once")
    prompts: list[Prompt] = []
    for text in texts:
        if text == "-":
            content = _read("-").removesuffix("\n")
            prompts.append(_text_prompt(content, "stdin"))
        else:
            prompts.append(_text_prompt(_valid(text, "--prompt"), "--prompt"))
    if file is not None:
        found = list(_lines(_read(file), file))
        if not found:
            raise UsageError(f"{_name(file)}: no prompts in it")
        prompts += found
    return prompts


def _lines(text: str, file: str) -> Iterable[Prompt]:
    """One prompt a line; JSON lines where the name says so, or the first line is a JSON object."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    as_json = Path(file).suffix.lower() in (".jsonl", ".ndjson")
    as_json = as_json or (bool(lines) and _is_object(lines[0][1]))
    for number, line in lines:
        origin = f"{_name(file)}:{number}"
        yield _json_prompt(line, origin) if as_json else Prompt(line.rstrip("\r"), origin)


def _json_prompt(line: str, origin: str) -> Prompt:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{origin}: not a line of JSON: {error}") from None
    if isinstance(value, str):
        return _text_prompt(_valid(value, origin), origin)
    if not isinstance(value, dict):
        raise UsageError(f"{origin}: expected an object with a prompt, found {_kind(value)}")
    for key in value:
        if key not in KEYS:
            from paddock.graph.errors import nearest

            hint = nearest(key, KEYS) or f"; there are {', '.join(KEYS)}"
            raise UsageError(f"{origin}: no key {key!r}{hint}")
    if ("prompt" in value) == ("messages" in value):
        raise UsageError(f"{origin}: expected either a prompt or messages")
    settings = value.get("sampling", {})
    if not isinstance(settings, dict):
        raise UsageError(f"{origin}: sampling: expected an object, found {_kind(settings)}")
    content: Any = value.get("prompt", value.get("messages"))
    if isinstance(content, str) and "prompt" in value:
        content = _text_prompt(_valid(content, origin), origin).content
    elif not isinstance(content, list):
        expected = "a text or token ids" if "prompt" in value else "a list of messages"
        raise UsageError(f"{origin}: expected {expected}, found {_kind(content)}")
    elif not content:
        raise UsageError(f"{origin}: the prompt is empty")
    elif "messages" in value:
        _check_messages(content, origin)
    elif not all(type(token) is int for token in content):
        raise UsageError(f"{origin}: prompt: expected text or a list of token ids")
    return Prompt(content, origin, value.get("id"), settings)


def _check_messages(messages: list[Any], origin: str) -> None:
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UsageError(f'{origin}: each message is {{"role": ..., "content": ...}}')
        for text in message.values():
            if isinstance(text, str):
                _valid(text, origin)


def _text_prompt(text: str, origin: str) -> Prompt:
    if not text:
        raise UsageError(f"{origin}: the prompt is empty; expected a text")
    return Prompt(text, origin)


def _read(file: str) -> str:
    """The whole file, `-` for stdin. Raises `UsageError` that names a line which is not UTF-8."""
    if file == "-":
        content = sys.stdin.buffer.read()
    else:
        try:
            content = Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
    return decode(content, _name(file))


def decode(content: bytes, origin: str, first_line: int = 1) -> str:
    """UTF-8 as text. Raises `UsageError` that names the line and byte where it is none."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + first_line
        raise UsageError(
            f"{origin}: line {line}: not valid UTF-8 (byte 0x{content[error.start]:02x}); "
            "convert it first, for example with iconv"
        ) from None


def _valid(text: str, origin: str) -> str:
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates (PEP 383), and JSON
    # can write them too.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{origin}: not valid UTF-8") from None
    return text


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(
        type(value), repr(value)
    )


def _name(file: str) -> str:
    return "stdin" if file == "-" else file
