"""Random JSON schemas in the manner of public corpora: the keywords that people use, combined."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["name", "id", "size", "tags", "owner", "items", "active", "created at", "ünï", "a.b"]
_WORDS = ["red", "green", "x y", 'q"uote', "é", "", "0"]


def random_schema(seed: int) -> dict[str, Any]:
    """An object or array schema that some value is valid under."""
    rng = random.Random(seed)
    schema = _object(rng, 0) if rng.random() < 0.8 else _array(rng, 0)
    if rng.random() < 0.2:
        schema["$defs"] = {"part": _schema(rng, 2)}
        properties = schema.get("properties")
        if properties is not None:
            properties["part"] = {"$ref": "#/$defs/part"}
            schema["required"] = sorted({*schema.get("required", ()), "part"})
    if rng.random() < 0.3:
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        schema["title"] = "Made at random"
    return schema


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _number, _integer, _boolean, _null, _enum, _const]
    if depth < 3:
        kinds += [_object, _array, _any_of, _one_type_of_two]
    return rng.choice(kinds)(rng, depth)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _schema(rng, depth + 1) for name in names},
        "additionalProperties": False,
    }
    if rng.random() < 0.8:
        schema["required"] = rng.sample(names, rng.randint(1, len(names)))
    if rng.random() < 0.1:
        schema["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 99}
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(0, 2)
    schema: dict[str, Any] = {
        "type": "array",
        "minItems": low,
        "maxItems": low + rng.randint(0, 2),
    }
    if rng.random() < 0.2:
        count = low + 1
        schema = {
            "type": "array",
            "prefixItems": [_schema(rng, depth + 1) for _ in range(count)],
            "items": False,
            "minItems": count,
        }
    else:
        schema["items"] = _schema(rng, depth + 1)
    return schema


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": rng.randint(1, 6)}
    match rng.randint(0, 5):
        case 0:
            schema = {"type": "string", "pattern": "^[a-z]{2,4}-[0-9]{1,3}$"}
        case 1:
            schema = {"type": "string", "format": rng.choice(["date", "uuid", "ipv4", "time"])}
        case 2:
            schema["minLength"] = 1
    return schema


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-5, 5)
    return {"type": "number", "minimum": low, "maximum": low + rng.randint(1, 50)}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-300, 300)
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": low + 1000}
    if rng.random() < 0.2:
        schema = {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 50}
    return schema


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _null(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "null"}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample([*_WORDS, 1, 2.5, None, True], rng.randint(1, 4))}


def _const(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice([*_WORDS, 7, False, [1], {"a": "b"}])}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def _one_type_of_two(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": ["null", "boolean"]}
