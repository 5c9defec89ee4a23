"""Ranks that Slurm starts: a real cluster of this host alone (`make test-slurm`).

It needs root, util-linux, and Debian's packages slurm-wlm and munge.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paddock.conftest import Run

pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")

CLUSTER = Path(__file__).parent / "hosts" / "one_node_slurm.sh"
PROMPT = ["--prompt", "The ls command", "--temperature", "0", "--max-tokens", "12", "--quiet"]
NEEDED = ("unshare", "munged", "slurmctld", "slurmd", "srun")

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, NEEDED)),
        reason="needs root, and Debian's slurm-wlm and munge",
    ),
]


@pytest.fixture
def slurm() -> Iterator[list[str]]:
    """What runs a command on the cluster."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    new = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:  # a socket's is short
        yield ["timeout", "90", "unshare", *new, str(CLUSTER), folder, port]


@pytest.mark.parametrize(
    ("starter", "mesh"),
    [
        (["srun", "-n", "2", "--mpi=pmi2"], "mesh.tp=2"),
        (["srun", "-n", "4", "--mpi=pmi2"], "mesh=tp2_pp2"),
        (["srun", "-n", "1"], "mesh.tp=2"),  # it starts its own, within the step
        (["salloc", "--quiet", "-n", "2"], "mesh.tp=2"),
    ],
)
def test_ranks_write_what_one_does(
    paddock: Run, slurm: list[str], starter: list[str], mesh: str
) -> None:
    expected = paddock("generate", "demo", *PROMPT)
    done = paddock("generate", "demo", mesh, *PROMPT, before=[*slurm, *starter])
    assert (done.stdout, done.stderr, done.returncode) == (expected.stdout, "", 0)


def test_processes_that_do_not_know_of_each_other_are_told(paddock: Run, slurm: list[str]) -> None:
    before = [*slurm, "srun", "-n", "2", "--mpi=none"]
    done = paddock("generate", "demo", "mesh.tp=2", *PROMPT, before=before)
    said = [line for line in done.stderr.splitlines() if line.startswith("paddock: ")]
    assert said
    for line in said:  # srun may end the other before it has said the same
        assert line.startswith("paddock: error: srun started 2 processes that do not know of each")
        assert "srun --mpi=pmi2" in line
    assert done.stdout == ""
    assert done.returncode not in (0, 124)


def test_a_step_of_another_size_is_told(paddock: Run, slurm: list[str]) -> None:
    before = [*slurm, "srun", "-n", "3", "--mpi=pmi2"]
    done = paddock("generate", "demo", "mesh.tp=2", *PROMPT, before=before)
    said = [line for line in done.stderr.splitlines() if line.startswith("paddock: ")]
    assert said == [
        "paddock: error: the launcher started 3 ranks, and tp=2 pp=1 are 2; start as many, or"
        " change the mesh"
    ]
    assert done.returncode not in (0, 124)
