"""Ranks that die, stop, or do not fit together: one clear error in a bounded time, never a hang."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from paddock import LLM, SamplingParams
from paddock.engines.protocol import BuildError
from paddock.runtime.distributed import launch
from paddock.runtime.distributed.front import RemoteSession
from paddock.runtime.errors import LoopClosed, RequestFailed
from tests.paddock.conftest import ROOT, Run

pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")

LONG = SamplingParams(max_tokens=400, ignore_eos=True, temperature=0)
SILENCE_S = 2.0
BOUND_S = 20.0  # for a loss to be told; the machine may be busy


@pytest.fixture
def llm(paddock_home: Path, monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setenv("PADDOCK_HOME", str(paddock_home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return LLM("demo", "mesh=tp2", f"mesh.silence_timeout_s={SILENCE_S}")


def processes(llm: LLM) -> list[int]:
    session = llm.running.session
    assert isinstance(session, RemoteSession)
    return session.processes


def gone(pids: list[int], within_s: float = BOUND_S) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


DIED, SILENT = "has died", "has not been heard of for 2 s"


@pytest.mark.parametrize(
    ("number", "rank", "said", "busy"),
    [
        (signal.SIGKILL, 1, DIED, True),
        (signal.SIGKILL, 0, DIED, False),
        (signal.SIGSTOP, 1, SILENT, True),
        pytest.param(signal.SIGKILL, 0, DIED, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 1, DIED, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, SILENT, False, marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_ends_everything(
    llm: LLM, number: signal.Signals, rank: int, said: str, busy: bool
) -> None:
    pids = processes(llm)
    # A thread that still waited here would take the connections of the next group's ranks.
    for thread in threading.enumerate():
        if thread.name == "paddock-ranks-accept":
            thread.join(BOUND_S)
            assert not thread.is_alive()
    for pid in pids:  # what a killed rank leaves in shared memory has no name
        mapped = re.findall(r"/dev/shm/mpich_shm_.*", Path(f"/proc/{pid}/maps").read_text())
        assert mapped
        assert all(line.endswith("(deleted)") for line in mapped)
    try:
        handle = None
        if busy:
            handle = llm.submit("The ls command", LONG)
            next(iter(handle))  # it runs
        os.kill(pids[rank], number)
        began = time.monotonic()
        if handle is not None:
            with pytest.raises(RequestFailed) as caught:
                handle.result()
            error = str(caught.value)
            assert f"rank {rank} on {socket.gethostname()} (process {pids[rank]})" in error
            assert said in error
            assert int(error.rpartition("the last step that it ended is ")[2]) >= 1
        while llm.running.loop.alive and time.monotonic() - began < BOUND_S:
            time.sleep(0.05)
        assert time.monotonic() - began < BOUND_S
        with pytest.raises(LoopClosed, match=f"rank {rank} on .* {said}"):
            llm.running.loop.submit("The ls command")
        assert gone(pids)
    finally:
        llm.close()


def session_of(pid: int) -> Path:
    """Where Linux tells, and is told, how it weighs a process's session."""
    return Path(f"/proc/{pid}/autogroup")


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL],
)
def test_ranks_end_with_their_front(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """And until then they are weighed against other sessions as it is."""
    options = ["--prompt", "The ls command", "--max-tokens", "2000", "--ignore-eos"]
    front = subprocess.Popen(
        [sys.executable, "-m", "paddock", "generate", "demo", "mesh=tp2", *options],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        weighed = session_of(front.pid).exists()
        if weighed:
            session_of(front.pid).write_text("3")
        assert front.stdout is not None
        assert front.stdout.read(1)  # it writes
        children = [child.pid for child in psutil.Process(front.pid).children(recursive=True)]
        assert len(children) >= 5  # the launcher, and a guard and a rank twice
        if weighed:
            assert sum(session_of(child).read_text().endswith(" 3\n") for child in children) >= 2
        front.send_signal(number)
        front.wait(BOUND_S)
        assert gone(children)
    finally:
        front.kill()
        front.communicate()


def started_apart(
    paddock: Run, first: list[str], second: list[str], before_second: list[str]
) -> subprocess.CompletedProcess[str]:
    """The demo on two ranks of one launcher, which were told different things."""
    launcher = str(Path(sys.executable).parent / "mpirun")
    command = ["generate", "demo", "-p", "The ls", "--quiet"]
    second = [*before_second, sys.executable, "-m", "paddock", *command, *second]
    return paddock(
        *[*command, *first, ":", "-n", "1", *second],
        before=["timeout", "60", launcher, "-n", "1"],
    )


def test_ranks_that_were_told_different_meshes_are_refused(paddock: Run) -> None:
    done = started_apart(paddock, ["mesh=tp2"], ["mesh.pp=2"], [])
    assert done.returncode not in (0, 124)
    assert done.stderr == (
        f"paddock: error: a rank cannot start: rank 1 on {socket.gethostname()} was started with"
        " 'mesh.pp=2', the first with 'mesh=tp2'; start all with the same command\n"
    )


def test_a_rank_with_another_engine_is_named(paddock: Run, tmp_path: Path) -> None:
    # A fake, for two releases of OpenVINO do not go into one environment.
    (tmp_path / "sitecustomize.py").write_text("import openvino\nopenvino.__version__ = '2020.1'\n")
    path = f"PYTHONPATH={os.pathsep.join([str(tmp_path), str(ROOT)])}"
    done = started_apart(paddock, ["mesh=tp2"], ["mesh=tp2"], ["env", path])
    assert done.returncode not in (0, 124)
    (error,) = done.stderr.splitlines()
    assert f"rank 1 on {socket.gethostname()} (process " in error
    assert "failed: it has openvino 2020.1, and the first process openvino 20" in error
    assert error.endswith("; install the same release on all hosts")


def test_a_rank_of_another_release_is_named(paddock: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for room in ("graph", "layers", "models", "weights", "engines", "runtime", "recipes"):
        shutil.copytree(ROOT / room, other / room)
    shutil.copytree(ROOT / "paddock", other / "paddock", symlinks=True)
    with (other / "graph" / "mesh.py").open("a") as file:
        file.write("# of another release\n")
    done = started_apart(paddock, ["mesh=tp2"], ["mesh=tp2"], ["env", f"PYTHONPATH={other}"])
    assert done.returncode not in (0, 124)
    (line,) = done.stderr.splitlines()
    assert "rank 1 on" in line
    assert "install the same release of Paddock on all hosts" in line


def test_a_rank_that_does_not_come_is_named(
    paddock_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(paddock_home))
    monkeypatch.setattr(launch, "WORKER", [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(BuildError, match=r"of 2 ranks 0 came up within 2 s; absent: rank 0, 1"):
        LLM("demo", "mesh=tp2", "mesh.start_timeout_s=2.0")
    monkeypatch.setattr(launch, "WORKER", [sys.executable, "-c", "raise SystemExit('no device')"])
    with pytest.raises(BuildError, match=r"launcher ended with code 1.*no device"):
        LLM("demo", "mesh=tp2", "mesh.start_timeout_s=30.0")


def test_an_mpi_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"mpi4py is not installed; pip install 'paddock\[mpi\]'"):
        launch.require_mpi()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no mpiexec beside .* or on PATH; pip install"):
        launch.require_mpi()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("mpirun (Open MPI) 4.1.6", True),
        ("mpiexec (OpenRTE) 4.1.6", True),
        ("HYDRA build details:\\n Version: 5.0.2", False),
    ],
)
def test_launchers_are_told_apart(tmp_path: Path, told: str, expected: bool) -> None:
    """Scripts that say what launchers say stand for those that are not installed."""
    launcher = tmp_path / "mpiexec"
    launcher.write_text(f"#!/bin/sh\nprintf '{told}\\n'\n")
    launcher.chmod(0o755)
    assert launch.is_open_mpi(launcher) is expected


@pytest.mark.skipif(shutil.which("ssh") is None, reason="launchers reach other hosts by ssh")
def test_a_host_that_is_not_there_is_named(paddock: Run) -> None:
    options = ["mesh=tp2", "mesh.hosts=[localhost,nosuch.invalid]", "--prompt", "The ls command"]
    done = paddock("generate", "demo", *options, before=["timeout", "60"])
    assert done.returncode not in (0, 124)
    (error,) = done.stderr.splitlines()
    assert error.startswith(
        "paddock: error: of 2 hosts in mesh.hosts 1 cannot run ranks: nosuch.invalid: "
    )
    # ssh's own words, and what to do.
    assert "hostname nosuch.invalid" in error
    assert "Correct the list; for each host `ssh " in error
    assert " nosuch.invalid true` must end by itself" in error
    assert done.stdout == ""


@pytest.mark.skipif(shutil.which("ssh") is None, reason="launchers reach other hosts by ssh")
def test_a_launcher_with_a_wrong_host_starts_nothing(paddock: Run) -> None:
    """It ends in words of its own, and those of ssh where it still passes them on."""
    launcher = [str(Path(sys.executable).parent / "mpirun"), "-hosts", "localhost,nosuch.invalid"]
    done = paddock("generate", "demo", "mesh=tp2", before=["timeout", "60", *launcher])
    assert done.returncode not in (0, 124)
    assert "paddock" not in done.stderr
    assert done.stdout == ""
