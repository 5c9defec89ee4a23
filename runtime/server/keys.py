"""API keys: from a file or the environment, never from a recipe or a command line."""

from __future__ import annotations

import os
from pathlib import Path

from paddock.graph.errors import PaddockError

VARIABLE = "PADDOCK_API_KEY"
SHORTEST = 8


class KeysError(PaddockError):
    """API keys that cannot be used."""


def read_keys(file: str | None) -> list[str]:
    """The keys, none where there are none. Raises `KeysError`, which never holds a key."""
    keys: list[str] = []
    if file is not None:
        path = Path(file).expanduser()
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise KeysError(f"server.api_key_file: {path}: {reason}") from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise KeysError(f"server.api_key_file: {path} holds no key; write one on each line")
    from_environment = os.environ.get(VARIABLE, "")
    if from_environment:
        keys.append(from_environment)
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise KeysError(
                f"API key {number} of {len(keys)}: expected {SHORTEST} or more printable ASCII"
                " characters without spaces"
            )
    return keys
