"""One line for a user from what pydantic, Hydra, OmegaConf and YAML say in many."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from paddock.graph.errors import nearest
from paddock.recipes.schema import Recipe

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "finite_number": "a finite number",
    "string_too_short": "a text that is not empty",
}


@cache
def keys() -> tuple[str, ...]:
    """Every dotted key of a recipe."""
    return tuple(_keys(Recipe, ""))


def first_problem(error: ValidationError, sources: Mapping[str, str]) -> str:
    """The first thing wrong with a recipe's values: key, expected, found, and where it was set."""
    problems = error.errors(include_url=False)
    first = problems[0]
    # An error within a list or a union carries further steps behind the key.
    steps = [str(step) for step in first["loc"]]
    key = next(
        (k for i in range(len(steps), 0, -1) if (k := ".".join(steps[:i])) in sources),
        ".".join(steps),
    )
    # A group's own check begins with the name of the field that it is about.
    field, _, rest = str(first["msg"]).removeprefix("Value error, ").partition(": ")
    if first["type"] == "value_error" and f"{key}.{field}" in keys():
        key, first = f"{key}.{field}", {**first, "msg": rest}
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_problem(key, first)}{_where(key, sources)}{more}"


def one_line(error: BaseException) -> str:
    """The first line of a library's message, and of what caused it where that says more."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: {error.problem}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error.__cause__ is not None and (not lines or str(error.__cause__) not in str(error)):
        lines = [*lines[:1], one_line(error.__cause__)]
    else:
        lines = lines[:1]
    return ": ".join(lines) or type(error).__name__


def _problem(key: str, problem: Any) -> str:
    kind, found = problem["type"], problem["input"]
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{nearest(key, keys())}"
    if kind == "missing":
        return f"{key} is not set"
    if kind == "value_error":
        return f"{key}: {str(problem['msg']).removeprefix('Value error, ')}".removeprefix(": ")
    expected = {
        "literal_error": context.get("expected"),
        "greater_than": f"more than {context.get('gt')}",
    }.get(kind, EXPECTED.get(kind))
    if expected is None:
        return f"{key}: {str(problem['msg'])[:1].lower()}{str(problem['msg'])[1:]}, found {found!r}"
    return f"{key}: expected {expected}, found {found!r}"


def _where(key: str, sources: Mapping[str, str]) -> str:
    place = sources.get(key) or next(
        (v for k, v in sources.items() if k.startswith(f"{key}.")), None
    )
    return f" ({place})" if place else ""


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
