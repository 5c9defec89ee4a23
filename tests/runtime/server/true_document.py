"""Schemathesis against a server, with all its checks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.runtime.server.serving import Serving

# What is valid by a body's types alone need not be accepted.
CHECKS = """\
[checks]
positive_data_acceptance.enabled = false

[[operations]]
include-method = "GET"
checks.positive_data_acceptance.enabled = true
"""


def check_document(
    server: Serving,
    environment: Mapping[str, str],
    folder: Path,
    *options: str,
    more_than: int,
    timeout_s: float,
) -> None:
    """Nothing is found in `more_than` requests that are made from the server's document."""
    pytest.importorskip("schemathesis")
    (folder / "schemathesis.toml").write_text(CHECKS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"),
            *("run", f"{server.url}/openapi.json", *options),
            *("--max-examples", "10", "--generation-deterministic", "--no-shrink"),
            *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"),
        ],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None
    assert int(generated[1]) > more_than
    assert "Traceback" not in server.log, server.log[-3000:]
