"""Reading JSON files that somebody else wrote: nothing ambiguous or absurd, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from paddock.graph.errors import PaddockError

Model = TypeVar("Model", bound=BaseModel)

MAX_FILE_BYTES = 256 << 20
"""Several times the largest tokenizer.json in use."""


class TokenizerError(PaddockError):
    """A checkpoint's tokenizer files cannot be used."""


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """A file of the checkpoint. Raises `TokenizerError`."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise TokenizerError(f"{path}: {size} bytes; more than {limit} are not read")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_text(path: Path, limit: int = MAX_FILE_BYTES) -> str:
    """A UTF-8 file of the checkpoint. Raises `TokenizerError`."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `TokenizerError`, as `read_json` does."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json(path: Path) -> Any:
    """Any JSON value. Raises `TokenizerError` for repeated keys, NaN and Infinity too."""

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise TokenizerError(f"{path}: the key {repeated!r} occurs twice in one object")
        return found

    def no_constant(name: str) -> None:
        raise TokenizerError(f"{path}: {name} is not JSON")

    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=no_repeats, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise TokenizerError(
            f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise TokenizerError(f"{path}: nested too deeply to be read") from None
    except ValueError as error:  # integers of thousands of digits
        raise TokenizerError(f"{path}: {error}") from None


def read_model(path: Path, model: type[Model]) -> Model:
    """The fields of a JSON file that `model` names, validated. Raises `TokenizerError`."""
    try:
        return model.model_validate(read_object(path))
    except ValidationError as error:
        raise TokenizerError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """One line of a pydantic error: field, what is wrong, what was found, how many more."""
    problems = error.errors(include_url=False)
    first = problems[0]
    field = ".".join(str(step) for step in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    line = f"{field}: {message}" if field else message
    if first["type"] != "missing":
        found = repr(first["input"])
        line += f", found {found if len(found) <= 80 else found[:77] + '...'}"
    more = len(problems) - 1
    return line + (f" (and {more} more)" if more else "")
