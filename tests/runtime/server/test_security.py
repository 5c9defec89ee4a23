"""Who may ask, from where, and what is never told."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from paddock.runtime.server.guard import is_loopback
from tests.runtime.server.serving import Serving

KEYS = ["first-key-of-two", "second key is none", "zweiter-schluessel"]
SECRET = "a-secret-that-nobody-must-see"
CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": f"My password is {SECRET}"}],
    "max_tokens": 3,
}


@pytest.fixture(scope="module")
def locked(
    environment: dict[str, str], server_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"# two of them\n{KEYS[0]}\n\n{KEYS[2]}\n")
    with Serving(
        environment | {"PADDOCK_API_KEY": "from-the-environment"},
        server_home,
        "demo",
        f"server.api_key_file={file}",
        "server.log_format=json",
        "server.cors_origins=[https://chat.example.org]",
    ) as started:
        yield started


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def every_route(server: Serving, key: str) -> list[tuple[str, str]]:
    _, _, document = server.ask("/openapi.json", headers=bearer(key))
    found = [
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    ]
    assert len(found) >= 10
    return [*found, ("GET", "/openapi.json"), ("GET", "/"), ("GET", "/nothing")]


def test_every_route_but_health_needs_a_key(locked: Serving) -> None:
    for method, path in every_route(locked, KEYS[0]):
        body = b"{}" if method == "POST" else None
        for headers in ({}, bearer("wrong"), bearer(""), {"Authorization": KEYS[0]}):
            status, found, answer = locked.ask(path, body, headers, method)
            if path == "/health":
                assert status == 200
                continue
            assert status == 401, (method, path, headers)
            assert found["www-authenticate"].startswith("Basic ")
            assert answer["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", [KEYS[0], KEYS[2], "from-the-environment"])
def test_every_key_opens(locked: Serving, key: str) -> None:
    with locked.client(key) as client:
        assert [model.id for model in client.models.list()] == ["demo"]
    password = base64.b64encode(f"anybody:{key}".encode()).decode()
    assert locked.ask("/v1/models", headers={"Authorization": f"Basic {password}"})[0] == 200


@pytest.mark.parametrize(
    "credentials", ["Basic", "Basic ", "Basic !!!", "Basic YQ==", "Bearer \xff", "Digest x", ""]
)
def test_malformed_credentials_are_wrong_ones(locked: Serving, credentials: str) -> None:
    assert locked.ask("/v1/models", headers={"Authorization": credentials})[0] == 401


def test_the_official_client_says_so(locked: Serving) -> None:
    with locked.client("wrong-key") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_secrets_are_not_in_the_log(locked: Serving) -> None:
    """Neither keys nor prompts, on success, on failure, in any route."""
    for key in (KEYS[0], "wrong-" + SECRET):
        locked.ask("/v1/chat/completions", CHAT, bearer(key))
        locked.ask("/v1/chat/completions", {**CHAT, "temperature": -1}, bearer(key))
        locked.ask(f"/v1/models?key={SECRET}", headers=bearer(key))
        locked.ask("/v1/completions", b'{"prompt": "' + SECRET.encode(), bearer(key))
    log = locked.log
    assert log.count("/v1/chat/completions") >= 4
    for secret in (*KEYS, SECRET, "from-the-environment", "password"):
        assert secret not in log


def test_log_lines_are_json_with_the_requests_id(locked: Serving) -> None:
    headers = bearer(KEYS[0]) | {"X-Request-Id": "request-of-mine"}
    _, found, answer = locked.ask("/v1/chat/completions", CHAT, headers)
    assert found["x-request-id"] == "request-of-mine"
    assert answer["id"] == "chatcmpl-request-of-mine"
    lines = [json.loads(line) for line in locked.log.splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line.get("request_id") == "request-of-mine"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert line["completion_tokens"] == 3
    assert line["duration_s"] > 0


@pytest.mark.parametrize("given", ["", "two words", "x" * 65, "a\tb", "ü"])
def test_unsound_request_ids_are_replaced(server: Serving, given: str) -> None:
    _, found, _ = server.ask("/version", headers={"X-Request-Id": given} if given else {})
    assert found["x-request-id"] != given
    assert len(found["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "127.0.0.1.evil.example.org"}, 403),
        ({"Host": "localhost", "Origin": "http://evil.example.org"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
        ({"Host": "localhost:80", "Origin": "http://localhost:81"}, 403),
    ],
)
def test_web_pages_elsewhere_cannot_use_a_local_server(
    server: Serving, headers: dict[str, str], status: int
) -> None:
    """Neither by a name that they let point here, nor by a form that they send."""
    found, answered, _ = server.ask("/v1/models", headers=headers)
    assert found == status
    assert "access-control-allow-origin" not in answered


def test_pages_of_allowed_origins_may(locked: Serving) -> None:
    ours = {"Origin": "https://chat.example.org"}
    preflight = ours | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    status, found, _ = locked.ask("/v1/chat/completions", None, preflight, "OPTIONS")
    assert status == 200
    assert found["access-control-allow-origin"] == "https://chat.example.org"
    status, found, _ = locked.ask("/v1/models", headers=ours | bearer(KEYS[0]))
    assert (status, found["access-control-allow-origin"]) == (200, "https://chat.example.org")
    theirs = {"Origin": "https://chat.example.com"}
    status, found, _ = locked.ask("/v1/models", headers=theirs | bearer(KEYS[0]))
    assert status == 403
    assert "access-control-allow-origin" not in found


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("app.localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.org", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_it_listens_at_the_loopback_unless_asked(server: Serving) -> None:
    assert server.url.startswith("http://127.0.0.1:")


COMMANDS = """
import contextlib, io, json, os, sys
from paddock.__main__ import main
for environment, arguments in json.loads(sys.argv[1]):
    os.environ |= environment
    told = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with contextlib.redirect_stderr(told):
        try:
            status = main(["serve", "demo", *arguments])
        except SystemExit as error:
            status = error.code
    print(json.dumps([status, told.buffer.getvalue().decode()]))
"""


def told_by(
    environment: dict[str, str], commands: list[tuple[dict[str, str], list[str]]]
) -> list[tuple[int, str]]:
    """Exit codes and errors of `paddock serve demo`, one after the other in one process."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(status, errors) for status, errors in map(json.loads, done.stdout.splitlines())]


def test_what_cannot_be_served_is_said_before_anything_is_built(
    environment: dict[str, str], tmp_path: Path
) -> None:
    expected = {
        "server.api_key_file=/nowhere": "/nowhere",
        "server.host=no.such.host.invalid": "no.such.host.invalid",
        "server.port=70000": "server.port",
        "server.prot=1": "server.port",
        "server.tool_format=xml": "tool_format",
    }
    found = told_by(
        environment | {"PADDOCK_HOME": str(tmp_path)}, [({}, [one]) for one in expected]
    )
    for message, (status, errors) in zip(expected.values(), found, strict=True):
        assert status in (1, 2)
        assert message in errors
        assert len(errors.splitlines()) == 1
    assert not (tmp_path / "engines").exists()


def test_bad_keys_are_refused_without_being_told(environment: dict[str, str]) -> None:
    keys = ("short", "with a space in it", "schlüssel-mit-umlaut")
    found = told_by(environment, [({"PADDOCK_API_KEY": key}, []) for key in keys])
    for key, (status, errors) in zip(keys, found, strict=True):
        assert status == 1
        assert "API key" in errors
        assert key not in errors


def test_a_port_that_is_taken_is_said(
    server: Serving, environment: dict[str, str], tmp_path: Path
) -> None:
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "paddock", "serve", "demo", f"server.port={port}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert port in done.stderr
    assert "server.port" in done.stderr


def test_a_request_cannot_bring_a_template(server: Serving) -> None:
    """The sandbox is for the checkpoint's; a client's own is not taken at all."""
    for field in ("chat_template", "template"):
        status, _, answer = server.ask("/v1/chat/completions", {**CHAT, field: "{{ 1 }}"})
        assert status == 400
        assert field in answer["error"]["message"]
    for name in ("__class__", "self", "messages", "a b"):
        body = {**CHAT, "chat_template_kwargs": {name: {"__init__": 1}}}
        assert server.ask("/v1/chat/completions", body)[0] == 400
    assert server.ask("/health")[0] == 200
