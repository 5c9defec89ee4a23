"""A flag for every field of `SamplingParams`, and the value of a field from text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paddock.commands.arguments import CommandParser, UsageError


@dataclass(frozen=True)
class Field:
    """How one field of `SamplingParams` is written on a command line."""

    name: str
    kind: Callable[[str], Any]
    metavar: str
    help: str
    repeatable: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def read(self, text: str) -> Any:
        """The value of one occurrence. Raises `UsageError` that names the flag."""
        try:
            return self.kind(text)
        except ValueError:
            raise UsageError(f"{self.flag}: expected {self.metavar}, found {text!r}") from None


def _switch(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    return int(token_id), float(bias)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(text) from None
    if not isinstance(found, dict):
        raise ValueError(text)
    return found


# A literal table, so that `--help` needs no pydantic; a test holds it against the model's fields.
FIELDS = (
    Field("n", int, "N", "continuations of each prompt"),
    Field("max_tokens", int, "N", "tokens to generate at most"),
    Field("min_tokens", int, "N", "tokens before the end of sequence is allowed"),
    Field("temperature", float, "X", "0 takes the likeliest token; higher is more random"),
    Field("top_k", int, "N", "sample from the N likeliest tokens; 0 is off"),
    Field("top_p", float, "P", "sample from the likeliest tokens of this total probability"),
    Field("min_p", float, "P", "leave out tokens less than P times as likely as the likeliest"),
    Field("typical_p", float, "P", "sample from the most typical tokens of this probability"),
    Field("repetition_penalty", float, "X", "over 1: tokens in prompt or output get unlikelier"),
    Field("presence_penalty", float, "X", "subtracted from logits of tokens in the output"),
    Field("frequency_penalty", float, "X", "the same, times how often they are in the output"),
    Field("logit_bias", _bias, "ID=X", "add X to the logit of token ID", repeatable=True),
    Field("bad_words", str, "TEXT", "a text that is never generated", repeatable=True),
    Field("seed", int, "N", "the same seed gives the same tokens"),
    Field("logprobs", int, "N", "log-probabilities, with N alternatives (in --json)"),
    Field("prompt_logprobs", int, "N", "the same of the prompt's tokens"),
    Field("stop", str, "TEXT", "end where this text was generated", repeatable=True),
    Field("stop_token_ids", int, "ID", "end at this token", repeatable=True),
    Field("include_stop", _switch, "yes|no", "leave the stop text in"),
    Field("ignore_eos", _switch, "yes|no", "go on after the end of sequence"),
    Field("skip_special_tokens", _switch, "yes|no", "leave special tokens out of the text"),
    Field(
        "structured_outputs",
        _object,
        "JSON",
        'what the text must be: {"regex": ...}, {"choice": [...]}, {"json": SCHEMA} or'
        ' {"grammar": ...}',
    ),
)


def add_sampling_arguments(parser: CommandParser) -> None:
    """The flags; what is not given comes from the recipe."""
    group = parser.add_argument_group("sampling", "what is not given is as the recipe says")
    for field in FIELDS:
        more: dict[str, Any] = {"metavar": field.metavar}
        if field.kind is _switch:
            more = {"action": argparse.BooleanOptionalAction}
        elif field.repeatable:
            more["action"] = "append"
        many = "; may be given several times" if field.repeatable else ""
        group.add_argument(
            field.flag, dest=f"sampling_{field.name}", help=field.help + many, **more
        )


def sampling_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given, as values. Raises `UsageError`."""
    settings: dict[str, Any] = {}
    for field in FIELDS:
        given = getattr(options, f"sampling_{field.name}")
        if given is None:
            continue
        if isinstance(given, bool):
            settings[field.name] = given
            continue
        texts = given if isinstance(given, list) else [given]
        settings[field.name] = _joined(field, [field.read(text) for text in texts])
    return settings


def read_setting(text: str) -> tuple[str, Any]:
    """`temperature=0.5` as it is typed after /set; `none` is the default again.

    Repeatable fields take one value here. Raises `UsageError` that names the nearest field.
    """
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    field = next((field for field in FIELDS if field.name == name), None)
    if field is None or not equals:
        from paddock.graph.errors import nearest

        known = [field.name for field in FIELDS]
        hint = nearest(name, known) if field is None else ""
        raise UsageError(f"expected setting=value, found {text!r}{hint}")
    value = value.strip()
    if value.lower() == "none":
        return name, None
    return name, _joined(field, [field.read(value)])


def _joined(field: Field, values: list[Any]) -> Any:
    if field.kind is _bias:
        return dict(values)
    return tuple(values) if field.repeatable else values[-1]
