"""The process that the other tests ask is one like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paddock.prepared_process import PreparedProcess


@pytest.mark.parametrize("arguments", [["show", "demo"], ["generate", "nosuch"], ["--nonsense"]])
def test_it_does_what_a_fresh_one_does(
    prepared: PreparedProcess, environment: dict[str, str], tmp_path: Path, arguments: list[str]
) -> None:
    fresh = subprocess.run(
        [sys.executable, "-m", "paddock", *arguments],
        env=environment,
        cwd=tmp_path,
        input="",
        capture_output=True,
        text=True,
    )
    done = prepared.run(arguments, {}, tmp_path, tmp_path, b"")
    assert done is not None
    assert (done.returncode, done.stdout) == (fresh.returncode, fresh.stdout)
    assert done.stderr == fresh.stderr
    assert done.stdout or done.stderr


def test_it_is_another_each_time_with_its_own_variables(
    prepared: PreparedProcess, tmp_path: Path
) -> None:
    """What one request changed is not there for the next."""
    own = {"PADDOCK_HOME": str(tmp_path / "own")}
    done = prepared.run(["cache", "list"], own, tmp_path, tmp_path, b"")
    assert done is not None
    assert own["PADDOCK_HOME"] in done.stdout + done.stderr
    done = prepared.run(["cache", "list"], {}, tmp_path, tmp_path, b"")
    assert done is not None
    assert done.returncode == 0
    assert own["PADDOCK_HOME"] not in done.stdout + done.stderr
