"""`paddock serve` on several ranks, and their loss at any moment: one error, nothing is left."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import psutil
import pytest

from tests.paddock.conftest import Run
from tests.runtime.server.serving import Serving

pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")

BOUND_S = 30.0  # for a loss to be told; the machine may be busy


def ranks_of(pid: int) -> list[psutil.Process]:
    """The ranks' own processes, without their guards."""
    return [child for child in psutil.Process(pid).children(recursive=True) if is_rank(child)]


def is_rank(process: psutil.Process) -> bool:
    """Of a process that may end while it is looked at."""
    try:
        return "paddock.recipes.rank" in process.cmdline() and not process.children()
    except psutil.NoSuchProcess:  # a zombie is one of these
        return False


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=BOUND_S)[1]


@pytest.mark.parametrize(
    ("number", "rank", "patience", "said"),
    [
        (signal.SIGKILL, 1, "silence_timeout_s=2", "has died"),
        pytest.param(
            *(signal.SIGSTOP, 0, "silence_timeout_s=2", "has not been heard of for 2 s"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(signal.SIGSTOP, 1, "step_timeout_s=3", "is late: step "), marks=pytest.mark.slow
        ),
    ],
)
def test_a_rank_that_is_lost_ends_a_stream_and_the_server(
    environment: dict[str, str],
    tmp_path: Path,
    number: signal.Signals,
    rank: int,
    patience: str,
    said: str,
) -> None:
    server = Serving(environment, tmp_path, "demo", "mesh.tp=2", f"mesh.{patience}")
    try:
        everybody = psutil.Process(server.process.pid).children(recursive=True)
        client = server.client()
        with client.completions.create(
            model="demo",
            prompt="The ls command",
            max_tokens=900,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            assert next(iter(stream)).choices
            lost = ranks_of(server.process.pid)[rank]
            lost.send_signal(number)
            began = time.monotonic()
            with pytest.raises(openai.APIError) as caught:
                for _ in stream:
                    pass
        error = str(caught.value)
        assert f"on {socket.gethostname()} (process {lost.pid}) {said}" in error
        assert int(error.rpartition("the last step that it ended is ")[2]) >= 1
        assert server.process.wait(BOUND_S) == 1
        assert time.monotonic() - began < BOUND_S
        assert f"(process {lost.pid}) {said}" in server.log
        assert gone(everybody)
    finally:
        server.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_its_ranks(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    server = Serving(environment, tmp_path, "demo", "mesh.tp=2")
    try:
        everybody = psutil.Process(server.process.pid).children(recursive=True)
        assert len(everybody) >= 5  # the launcher, and a guard and a rank twice
        server.process.send_signal(number)
        assert server.process.wait(BOUND_S) == 0
        assert gone(everybody)
        assert "Traceback" not in server.log
    finally:
        server.stop()


# Slow because it is not certain: the launcher ends the other rank at once, and a front that is
# busy building may hear of that one first.
@pytest.mark.slow
def test_a_rank_that_dies_during_the_build_is_named(
    environment: dict[str, str], paddock: Run, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "paddock", "generate", "demo", "mesh=tp2", "--prompt", "The"]
    front = subprocess.Popen(
        [*command, "--max-tokens", "1", "--quiet"],
        env=environment | {"PADDOCK_HOME": str(home)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + BOUND_S
        while not list((home / "engines").glob(".building-*")):
            assert time.monotonic() < end
            assert front.poll() is None
            time.sleep(0.005)
        front.send_signal(signal.SIGSTOP)  # the demo's build ends sooner than ranks are there
        ranks: list[psutil.Process] = []
        # A rank has said who it is by the time when it listens.
        while len(ranks) < 2 or any(rank.num_threads() < 2 for rank in ranks):
            assert time.monotonic() < end
            ranks = ranks_of(front.pid)
            time.sleep(0.02)
        front.send_signal(signal.SIGCONT)
        time.sleep(0.1)  # for the front to hear it
        assert not list((home / "engines").glob("demo-*"))  # it still builds
        everybody = psutil.Process(front.pid).children(recursive=True)
        ranks[1].kill()
        stdout, stderr = front.communicate(timeout=2 * BOUND_S)
        assert (front.returncode, stdout) == (1, "")
        (error,) = stderr.splitlines()
        assert error.startswith("paddock: error: rank ")
        assert f"on {socket.gethostname()} (process {ranks[1].pid}) has died" in error
        assert gone(everybody)
        assert not [path for path in home.rglob("*") if ".building" in path.name]
    finally:
        front.kill()
        front.communicate()


def test_without_mpi_nothing_is_begun(paddock: Run, tmp_path: Path) -> None:
    # As where it is not installed.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['mpi4py'] = None\n")
    home = tmp_path / "home"
    root = Path(__file__).parents[2]
    done = paddock(
        "generate",
        "demo",
        "mesh=tp2",
        "--prompt",
        "The",
        PADDOCK_HOME=str(home),
        PYTHONPATH=f"{tmp_path}:{root}",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "paddock: error: several ranks need MPI, and mpi4py is not installed; pip install"
        " 'paddock[mpi]' brings it with an MPI\n"
    )
    assert not home.exists()
