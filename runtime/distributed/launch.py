"""How ranks come to be: started by us through MPI's launcher, or by somebody else's."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from paddock.engines.protocol import BuildError
from paddock.runtime.distributed import guard
from paddock.runtime.distributed.hosts import divide

FRONT = "PADDOCK_FRONT"
"""The environment's variable by which a rank finds its front: `token@host:port,host:port`."""

ASKED = "PADDOCK_MESH"
"""The mesh as the command line of a process under a launcher has it, which must be the same on all:
only the first process reads the rest of it."""

DISMISSED = "dismissed"
"""In the place of an address: no rank is needed."""

WORKER = [sys.executable, "-P", "-m", "paddock.recipes.rank"]

# (rank, number of ranks) as launchers tell them: MPICH, Intel MPI and srun --mpi=pmi2; Open MPI;
# srun --mpi=pmix.
_TOLD = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
    ("PMIX_RANK", "SLURM_NTASKS"),
)
_OWN: list[subprocess.Popen[bytes]] = []  # the rank in this process's place, once it was started
_AUTOGROUP = Path("/proc/self/autogroup")
_TRIES = 50
_LAUNCHERS_OWN = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_LOCAL", "HYDI_", "HYDRA_")

_USERS_OWN = ("OMPI_MCA", "HYDRA_LAUNCHER")  # how it reaches other hosts, among others


@dataclass(frozen=True)
class Launched:
    """This process is one of several that an MPI launcher started."""

    rank: int
    size: int


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """What the launcher says, before MPI is loaded; None where there was none."""
    for rank, size in _TOLD:
        if environment.get(rank, "").isdigit() and environment.get(size, "").isdigit():
            found = Launched(int(environment[rank]), int(environment[size]))
            return found if found.size > 1 else None
    return None


def require_mpi_of_srun(environment: Mapping[str, str] = os.environ) -> None:
    """Where srun started several processes, they must know of each other. Raises `BuildError`."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if launched(environment) is None and tasks.isdigit() and int(tasks) > 1:
        raise BuildError(
            f"srun started {tasks} processes that do not know of each other; start them with"
            " srun --mpi=pmi2 (srun --mpi=list shows what there is), or unset SLURM_STEP_NUM_TASKS"
            " where each is to have ranks of its own"
        )


def dismiss() -> None:
    """Let the other processes of the launcher go, where this one ends without having used them.

    They wait in MPI's beginning for a rank in this one's place.
    """
    if launched() is not None and not _OWN:
        start_own_rank(DISMISSED).popen.wait()


def note(arguments: Sequence[str]) -> None:
    """Keep what a command line under a launcher says of the mesh, for the rank of this process."""
    words = [word for word in arguments if word.startswith(("mesh=", "mesh."))]
    os.environ[ASKED] = " ".join(words)


def follow() -> int:
    """Be the guard of a rank that is not the first; its exit code."""
    return guard.main(WORKER)


def end_launcher_at_exit() -> None:
    """Where a host was cut off, its launcher waits for ever for what it started there."""
    atexit.register(_end_launcher)


def _end_launcher() -> None:
    for process in psutil.Process().parents():
        if process.name().startswith(("mpirun", "mpiexec", "prterun", "orterun")):
            process.terminate()
            return


def session_niceness() -> int:
    """How Linux weighs this process's session against others (autogroup); 0 where it does not."""
    try:
        # "/autogroup-25 nice -5"
        return int(_AUTOGROUP.read_text().rpartition(" ")[2])
    except (OSError, ValueError):
        return 0


def set_session_niceness(niceness: int) -> None:
    """Weigh this process's session like another's, as far as that is allowed.

    MPI's launchers give every rank a session of its own, and where Linux weighs sessions, the
    niceness of a process counts within its session alone: a front that was given priority, or
    gave it up, would have ranks that did neither.
    """
    if niceness == session_niceness():
        return
    for _ in range(_TRIES):
        try:
            _AUTOGROUP.write_text(str(niceness))
            return
        except BlockingIOError:  # once in 100 ms, all processes of the machine together
            time.sleep(0.1)
        except OSError:
            return


def require_mpi() -> Path:
    """The launcher beside this Python, or on PATH. Raises `BuildError`."""
    if importlib.util.find_spec("mpi4py") is None:
        raise BuildError(
            "several ranks need MPI, and mpi4py is not installed; pip install 'paddock[mpi]'"
            " brings it with an MPI"
        )
    places = [str(Path(sys.executable).parent), str(Path(sys.prefix) / "bin")]
    for name in ("mpiexec", "mpirun"):
        found = shutil.which(name, path=os.pathsep.join(places)) or shutil.which(name)
        if found:
            return Path(found)
    raise BuildError(
        "several ranks need an MPI launcher, and there is no mpiexec beside"
        f" {sys.executable} or on PATH; pip install 'paddock[mpi]' brings one"
    )


@dataclass
class Process:
    """Something that was started, and what it printed."""

    popen: subprocess.Popen[bytes]
    output: IO[bytes] | None

    def poll(self) -> int | None:
        return self.popen.poll()

    def last_words(self) -> str:
        """The end of what it printed, in one line."""
        if self.output is None:
            return ""
        try:
            self.output.seek(0)
            lines = self.output.read().decode("utf-8", "replace").split("\n")
        except ValueError:  # another thread ended it in the meantime
            return ""
        said = [line.strip(" =-\r") for line in lines if line.strip(" =-\r")]
        return " / ".join(said[-3:])[-600:]

    def end(self) -> None:
        """Kill it and wait for it."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(2.0)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()
        if self.output is not None:
            self.output.close()


def start_ranks(count: int, front: str, hosts: Sequence[str] | None = None) -> Process:
    """All ranks through the launcher, on this host or as many on each of `hosts`."""
    launcher = require_mpi()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHERS_OWN) or name.startswith(_USERS_OWN)
    }
    environment |= {FRONT: front, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    options: list[str] = []
    if is_open_mpi(launcher):
        options = ["--oversubscribe", "--bind-to", "none"]
        if os.geteuid() == 0:  # it refuses root unless told twice
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if hosts is None:
        # MPICH's would divide them over a Slurm job's hosts, by an srun that waits for the one
        # that this process may be in.
        environment |= {"HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user"}
    else:
        options += ["--host" if options else "-hosts", divide(count, hosts)]
    output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
    command = [str(launcher), *options, "-n", str(count)]
    popen = subprocess.Popen(
        [*command, sys.executable, "-I", str(Path(guard.__file__).resolve()), *WORKER],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C is the front's, which ends them in order
    )
    return Process(popen, output)


def start_own_rank(front: str) -> Process:
    """The first rank, where a launcher started this process in its place."""
    popen = subprocess.Popen(
        WORKER,
        stdin=subprocess.DEVNULL,
        env=os.environ | {FRONT: front},
        close_fds=False,  # the launcher's descriptors are the rank's
    )
    _OWN.append(popen)
    return Process(popen, None)


def is_open_mpi(launcher: Path) -> bool:
    done = subprocess.run([str(launcher), "--version"], capture_output=True, timeout=60)
    said = done.stdout + done.stderr
    return b"Open MPI" in said or b"OpenRTE" in said  # the latter where it is called mpiexec
