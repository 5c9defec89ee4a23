"""Paddock as a user runs it: a real process, with engines kept in a folder of this test run."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def paddock_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paddock-home")


@pytest.fixture(scope="session")
def environment(paddock_home: Path) -> dict[str, str]:
    """For a process: this checkout, this run's engines, no network, no colour."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PADDOCK", "HF_", "PYTHON"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PADDOCK_HOME": str(paddock_home),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture
def paddock(environment: dict[str, str], tmp_path: Path) -> Run:
    """`paddock("list", "--json", stdin=b"...", NAME="value of an environment variable")`.

    `before` is a program that starts it, with its own arguments.
    """

    def run(
        *arguments: str | bytes | Path,
        stdin: bytes = b"",
        before: Sequence[str] = (),
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*before, sys.executable, "-m", "paddock", *arguments],
            cwd=tmp_path,
            env=environment | variables,
            input=stdin,
            capture_output=True,
            timeout=300,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run
