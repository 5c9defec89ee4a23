"""The OpenAPI document is complete and true: schemathesis asks what it allows and forbids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.server.serving import Serving
from tests.runtime.server.true_document import check_document

KEY = "key-of-this-test"


@pytest.fixture(scope="module")
def locked(environment: dict[str, str], server_home: Path) -> Iterator[Serving]:
    """With a key, so that refusals without it are looked at; no answer takes long."""
    with Serving(
        environment | {"PADDOCK_API_KEY": KEY},
        server_home,
        "demo",
        "server.request_timeout_s=0.2",
        "server.log_requests=false",
    ) as started:
        yield started


@pytest.fixture(scope="module")
def document(locked: Serving) -> dict[str, Any]:
    _, _, found = locked.ask("/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    assert isinstance(found, dict)
    return found


def test_without_keys_it_asks_for_none(server: Serving) -> None:
    _, _, found = server.ask("/openapi.json")
    assert "securitySchemes" not in found["components"]
    model = found["components"]["schemas"]["ChatRequest"]["properties"]["model"]
    assert model["enum"] == ["demo"]


def test_every_route_is_described(document: dict[str, Any]) -> None:
    paths = set(document["paths"])
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/models",
        "/v1/models/{model}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/version",
        "/stats",
        "/metrics",
        "/",
    } <= paths
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            assert "422" not in operation["responses"], (method, path)
            keyed = operation.get("security") != []
            assert keyed is (path != "/health"), path
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in re.findall(r"#/components/schemas/([\w-]+)", str(document)):
        assert name in schemas


def test_schemathesis_finds_nothing(
    locked: Serving, environment: dict[str, str], tmp_path: Path
) -> None:
    """All its checks: documented statuses and content types, bodies that are valid under their
    schemas, no server error, refusal of what the document does not allow and of what has no key.

    That whatever is valid is accepted holds for the routes without a body. Of bodies types cannot
    say that a grammar is one, that a token id is within the vocabulary, or that a prompt fits into
    the context; and to JSON Schema 1.0 is an integer, which OpenAI's API and this one refuse.
    """
    check_document(
        locked,
        environment,
        tmp_path,
        *("--header", f"Authorization: Bearer {KEY}", "--request-timeout", "60"),
        more_than=1000,
        timeout_s=280,
    )
    assert locked.ask("/health")[0] == 200
