"""The page at `/`: one file that uses no network but this server's."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from paddock.runtime.server.documented import failures

PAGE = Path(__file__).with_name("page.html")


def routes() -> APIRouter:
    router = APIRouter(tags=["page"])
    text = PAGE.read_text("utf-8")
    headers = {
        "Content-Security-Policy": content_security_policy(text),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }

    @router.get("/", response_class=HTMLResponse, responses=failures(401, 403, 500))
    async def page() -> Response:
        """Chat with the model, and see how the server does."""
        return HTMLResponse(text, headers=headers)

    return router


def content_security_policy(text: str) -> str:
    """Nothing but the page's own script and style runs, and nothing but this server is reached."""
    script, style = (
        " ".join(
            f"'sha256-{_digest(part)}'" for part in re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        )
        for tag in ("script", "style")
    )
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
