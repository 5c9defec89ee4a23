"""Middleware that decides who may ask, before anything of the request is read.

- Keys: every route but `/health` needs one where there are any, as `Authorization: Bearer KEY`, or
  as the password of HTTP basic authentication, which is how a browser asks for it.
- Hosts: at the loopback, a request must name it. Else any web page could reach the server through
  a name of its own that it lets point to 127.0.0.1 (DNS rebinding).
- Origins: a request that a browser says comes from a page elsewhere is refused, unless the page's
  origin is allowed; the browser would send it though it hides the answer.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from paddock.runtime.server.api_errors import ApiError
from paddock.runtime.server.settings import ServerSettings

OPEN_PATHS = frozenset({"/health"})


class Guard:
    def __init__(self, app: ASGIApp, *, settings: ServerSettings, keys: Sequence[str]) -> None:
        self._app = app
        # Digests are of one length, so that comparing them tells nothing of a key's.
        self._keys = [sha256(key.encode()).digest() for key in keys]
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.cors_origins)
        self._any_origin = "*" in settings.cors_origins
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._loopback = is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            answer = JSONResponse(refusal.body, refusal.status, refusal.headers)
            await answer(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if not self._serves_host(host):
            return ApiError(
                403,
                f"this server does not answer for the host {host[:100]!r}; name it in"
                " server.allowed_hosts",
                type="permission_error",
                code="host_not_allowed",
            )
        origin = headers.get("origin", "")
        if origin and not self._serves_origin(origin, host):
            return ApiError(
                403,
                f"web pages of {origin[:100]!r} may not use this server; name it in"
                " server.cors_origins",
                type="permission_error",
                code="origin_not_allowed",
            )
        if self._keys and path not in OPEN_PATHS and not self._has_key(headers):
            return ApiError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="Paddock: the API key is the password"'},
            )
        return None

    def _serves_host(self, host: str) -> bool:
        name = _host_name(host)
        if self._hosts:
            return name in self._hosts or "*" in self._hosts
        return not self._loopback or is_loopback(name)

    def _serves_origin(self, origin: str, host: str) -> bool:
        if self._any_origin or origin.lower() in self._origins:
            return True
        return urlsplit(origin).netloc.lower() == host.lower()

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        match scheme.lower():
            case "bearer":
                key = given.strip()
            case "basic":
                key = _password(given.strip())
            case _:
                return False
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, so that the time does not tell which one was nearly right.
        return any([hmac.compare_digest(digest, own) for own in self._keys])


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this machine's own."""
    if host in ("localhost", "") or host.endswith(".localhost"):
        return host != ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """The name in a Host header, without the port and the brackets of IPv6."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _password(given: str) -> str:
    try:
        decoded = base64.b64decode(given, validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(":")[2]
