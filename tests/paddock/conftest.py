"""Paddock as a user runs it: a real process, with engines kept in a folder of this test run."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.paddock.prepared_process import READ_LATE, PreparedProcess

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


@pytest.fixture(scope="session")
def prepared(environment: dict[str, str]) -> Iterator[PreparedProcess]:
    process = PreparedProcess(environment)
    yield process
    process.close()


@pytest.fixture
def paddock(environment: dict[str, str], prepared: PreparedProcess, tmp_path: Path) -> Run:
    """`paddock("list", "--json", stdin=b"...", NAME="value of an environment variable")`.

    `before` is a program that starts it, with its own arguments. Without one, and with
    no variables that may matter to what is imported, the process has its imports behind it.
    """

    def run(
        *arguments: str | bytes | Path,
        stdin: bytes = b"",
        before: Sequence[str] = (),
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        words = [word for word in arguments if isinstance(word, str)]
        if not before and words == [*arguments] and READ_LATE.issuperset(variables):
            with tempfile.TemporaryDirectory() as files:
                forked = prepared.run(words, variables, tmp_path, Path(files), stdin)
            if forked is not None:
                return forked
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
