"""Ranks on two hosts: network namespaces with a cable between them, and a real MPI launcher.

`make test-hosts` runs these alone. They need Linux, iproute2 and util-linux, and either root or
user namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.paddock.conftest import Run

pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")

HOSTS = Path(__file__).parent / "hosts"
PROMPT = ["--prompt", "The ls command", "--temperature", "0", "--max-tokens", "12"]
BOUND_S = 30.0

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def two_hosts() -> list[str]:
    """What runs a command on the first of two hosts."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    new = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["unshare", *as_root, *new, str(HOSTS / "two_hosts.sh")]
    for needed in ("ip", "unshare", "nsenter"):
        if shutil.which(needed) is None:
            pytest.skip(f"needs {needed} (iproute2 and util-linux)")
    probe = subprocess.run(
        [*command, str(HOSTS / "remote_shell.sh"), "b", "true"], capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"namespaces are not allowed here: {probe.stderr.strip()}")
    return command


def mpirun(two_hosts: list[str], hosts: str = "a,b") -> list[str]:
    launcher = str(Path(sys.executable).parent / "mpirun")
    shell = ["-launcher", "ssh", "-launcher-exec", str(HOSTS / "remote_shell.sh")]
    return [*two_hosts, launcher, "-n", "2", "-hosts", hosts, *shell]


@pytest.mark.parametrize("mesh", ["mesh=tp2", pytest.param("mesh=pp2", marks=pytest.mark.slow)])
def test_ranks_on_two_hosts_write_what_one_does(
    paddock: Run, two_hosts: list[str], mesh: str
) -> None:
    expected = paddock("generate", "demo", *PROMPT, "--quiet")
    done = paddock("generate", "demo", mesh, *PROMPT, "--quiet", before=mpirun(two_hosts))
    assert (done.stdout, done.stderr, done.returncode) == (expected.stdout, "", 0)


@pytest.mark.parametrize("hosts", ["a,b", "a,c"])
def test_paddock_starts_ranks_on_hosts_that_answer(
    paddock: Run, two_hosts: list[str], hosts: str
) -> None:
    done = paddock(
        *["generate", "demo", "mesh=tp2", f"mesh.hosts=[{hosts}]", *PROMPT, "--quiet"],
        before=two_hosts,
        HYDRA_LAUNCHER_EXEC=str(HOSTS / "remote_shell.sh"),
    )
    if hosts == "a,b":
        expected = paddock("generate", "demo", *PROMPT, "--quiet")
        assert (done.stdout, done.stderr, done.returncode) == (expected.stdout, "", 0)
        return
    (error,) = done.stderr.splitlines()
    assert error.startswith("paddock: error: of 2 hosts in mesh.hosts 1 cannot run ranks: c: ")
    assert "Could not resolve hostname c: Name or service not known. Correct the list" in error
    assert (done.stdout, done.returncode) == ("", 1)


def test_a_host_without_the_engine_is_named(
    paddock: Run, two_hosts: list[str], paddock_home: Path
) -> None:
    done = paddock(
        "generate",
        "demo",
        "mesh=tp2",
        *PROMPT,
        "--quiet",
        before=mpirun(two_hosts),
        WITHOUT=str(paddock_home),
    )
    assert done.returncode not in (0, 124)
    (error,) = done.stderr.splitlines()
    assert error.startswith("paddock: error: rank 1 on b (process ")
    assert "on b: it has no manifest.json; all hosts need the folder of engines" in error


@pytest.mark.slow
def test_a_cable_that_is_cut_ends_both_hosts(
    environment: dict[str, str], two_hosts: list[str], tmp_path: Path
) -> None:
    command = ["generate", "demo", "mesh=tp2", "mesh.silence_timeout_s=2", *PROMPT[:-1], "2000"]
    command = [sys.executable, "-m", "paddock", *command, "--ignore-eos", "--quiet"]
    started = subprocess.Popen(
        [*mpirun(two_hosts), *command],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert started.stdout is not None
        assert started.stdout.read(1)  # it writes
        (first,) = psutil.Process(started.pid).children()
        of_first = [
            "nsenter",
            f"--target={first.pid}",
            "--mount",
            f"--net=/proc/{first.pid}/ns/net",
        ]
        if os.geteuid():
            of_first += ["--user", "--preserve-credentials"]
        ranks = [p for p in first.children(recursive=True) if "paddock.recipes.rank" in p.cmdline()]
        assert len(ranks) == 2
        subprocess.run([*of_first, "ip", "-n", "b", "link", "set", "eth0", "down"], check=True)
        _, stderr = started.communicate(timeout=BOUND_S)
        assert started.returncode
        ours = [line for line in stderr.decode().splitlines() if line.startswith("paddock: error")]
        (error,) = ours
        assert "rank 1 on b (process " in error
        assert "has not been heard of for 2 s: it is stopped, or its host is gone" in error
        assert int(error.rpartition("the last step that it ended is ")[2]) >= 1
    finally:
        started.kill()  # and with it, whatever still runs on the two hosts
        started.communicate()
