"""Several ranks through real processes: started by Paddock, and by MPI's launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paddock.conftest import Run

pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")

PROMPT = ["--prompt", "The ls command", "--temperature", "0", "--max-tokens", "12", "--quiet"]


@pytest.fixture(scope="module")
def expected(environment: dict[str, str]) -> str:
    """What one rank writes."""
    command = [sys.executable, "-m", "paddock", "generate", "demo", *PROMPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def mpirun(paddock: Run, ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = Path(sys.executable).parent / "mpirun"
    return paddock(*arguments, before=["timeout", "200", str(launcher), "-n", str(ranks)])


@pytest.mark.parametrize(
    "mesh",
    [
        ["mesh=tp2"],
        pytest.param(["mesh=pp2"], marks=pytest.mark.slow),
        ["mesh.pp=2", "mesh.stages=[4,2]"],
    ],
)
def test_paddock_starts_its_own_ranks(paddock: Run, expected: str, mesh: list[str]) -> None:
    done = paddock("generate", "demo", *mesh, *PROMPT)
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


@pytest.mark.parametrize(
    ("ranks", "mesh"), [(2, "mesh=tp2"), pytest.param(4, "mesh=tp2_pp2", marks=pytest.mark.slow)]
)
def test_it_runs_under_the_launcher(paddock: Run, expected: str, ranks: int, mesh: str) -> None:
    done = mpirun(paddock, ranks, "generate", "demo", mesh, *PROMPT)
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


def test_a_launcher_that_started_another_number_is_told(paddock: Run) -> None:
    done = mpirun(paddock, 3, "generate", "demo", "mesh.tp=2", *PROMPT)
    assert done.returncode != 0
    assert done.stderr == (
        "paddock: error: the launcher started 3 ranks, and tp=2 pp=1 are 2; start as many, or"
        " change the mesh\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list"], ""),
        (["generate", "nosuch", *PROMPT], "nosuch"),
        (["generate", "demo", "mesh.tp=3", *PROMPT], "tp may be one of 1, 2, 4"),
        (["generate", "demo", "mesh.pp=2", "mesh.stages=[9,9]", *PROMPT], "hold 18 layers"),
    ],
)
def test_no_rank_is_left_where_the_first_needs_none(
    paddock: Run, arguments: list[str], said: str
) -> None:
    done = mpirun(paddock, 3 if "mesh.tp=3" in arguments else 2, *arguments)
    assert bool(done.returncode) == bool(said)
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)
