"""The hosts on which ranks are to start: whether they can be reached, before a launcher tries.

A launcher that cannot start something on a host says so in words of its own, and sometimes ends
before it has passed on those of its remote shell.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from paddock.engines.protocol import BuildError

TRIAL_S = 30.0
"""For a host to answer the remote shell."""

_CONNECT_S = 15
_FROM_SSH = 255  # ssh's own exit code: the command was not run
_SHELL_SAYS = ("HYDRA_LAUNCHER_EXEC", "OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent")


def divide(count: int, hosts: Sequence[str]) -> str:
    """The launcher's list of hosts for so many ranks: those of one host follow each other.

    Raises `BuildError` where they cannot have the same number each.
    """
    repeated = sorted({host for host in hosts if hosts.count(host) > 1})
    if repeated:
        raise BuildError(f"mesh.hosts names {', '.join(repeated)} more than once; once is enough")
    if count % len(hosts):
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise BuildError(
            f"mesh.hosts names {len(hosts)} hosts, and {count} ranks do not divide over them;"
            f" {' or '.join(map(str, fitting))} would do"
        )
    return ",".join(f"{host}:{count // len(hosts)}" for host in hosts)


def require(hosts: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Every host answers the launcher's remote shell within `TRIAL_S`, and has this Python.

    Raises `BuildError`, which names those that do not.
    """
    others = [host for host in hosts if not is_here(host)]
    if not others:
        return
    shell = remote_shell(environment)
    with ThreadPoolExecutor(len(others)) as pool:
        said = list(pool.map(lambda host: _trial(shell, host), others))
    wrong = [f"{host}: {why}" for host, why in zip(others, said, strict=True) if why]
    if wrong:
        command = f"{shlex.join([*shell, others[0]])} true" if shell else f"ping {others[0]}"
        raise BuildError(
            f"of {len(hosts)} hosts in mesh.hosts {len(wrong)} cannot run ranks: {'; '.join(wrong)}"
            f". Correct the list; for each host `{command}` must end by itself, without a question"
        )


def is_here(host: str) -> bool:
    """Whether a name is this host's, which launchers reach without a remote shell."""
    if host in ("localhost", socket.gethostname()):
        return True
    own = {a.address for found in psutil.net_if_addrs().values() for a in found}
    addresses = _addresses(host)
    return bool(addresses) and addresses <= own


def remote_shell(environment: Mapping[str, str]) -> list[str]:
    """What the launcher runs to reach a host; empty where it has other means (Slurm's)."""
    if environment.get("HYDRA_LAUNCHER", "ssh") not in ("ssh", "rsh"):
        return []
    if "SLURM_JOB_ID" in environment and "HYDRA_LAUNCHER" not in environment:
        return []
    told = next((environment[name] for name in _SHELL_SAYS if environment.get(name)), "ssh")
    command = shlex.split(told)
    if Path(command[0]).name == "ssh":  # no questions: nobody may be there to answer
        command += ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"mesh.hosts: launchers reach other hosts by {command[0]}, which is not installed"
        )
    return command


def _trial(shell: Sequence[str], host: str) -> str:
    """What is wrong with a host; nothing where it would do."""
    if not shell:
        return "" if _addresses(host) else "the name cannot be resolved"
    wanted = f"test -x {shlex.quote(sys.executable)}"
    try:
        done = subprocess.run(
            [*shell, host, wanted],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_S,
        )
    except subprocess.TimeoutExpired:
        return f"it has not answered for {TRIAL_S:g} s"
    if done.returncode == 0:
        return ""
    said = " / ".join(done.stderr.decode("utf-8", "replace").split("\n")).strip(" /\r")[-300:]
    if done.returncode == _FROM_SSH or said:
        return said or f"{Path(shell[0]).name} ended with code {done.returncode}"
    return f"it has no {sys.executable}; install Paddock at the same place on all hosts"


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
