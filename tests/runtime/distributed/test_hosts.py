"""Hosts that a user names, before a launcher is asked to start anything there.

Scripts stand for ssh where what it comes to would need other machines; tests/paddock/test_hosts.py
has two hosts.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from paddock.engines.protocol import BuildError
from paddock.recipes.compose import compose
from paddock.recipes.errors import RecipeError
from paddock.runtime.distributed import hosts


@pytest.mark.parametrize(
    ("count", "named", "expected"),
    [(4, ["a", "b"], "a:2,b:2"), (3, ["a"], "a:3"), (2, ["b", "a"], "b:1,a:1")],
)
def test_ranks_of_a_host_follow_each_other(count: int, named: list[str], expected: str) -> None:
    assert hosts.divide(count, named) == expected


@pytest.mark.parametrize(
    ("count", "named", "said"),
    [
        (4, ["a", "b", "c"], "names 3 hosts, and 4 ranks do not divide over them; 1 or 2 or 4"),
        (2, ["a", "a"], "names a more than once"),
    ],
)
def test_lists_that_do_not_fit_are_refused(count: int, named: list[str], said: str) -> None:
    with pytest.raises(BuildError, match=said):
        hosts.divide(count, named)


@pytest.mark.parametrize("name", ["-oProxyCommand=true", "a b", "a,b", "", "a\n", "a;b"])
def test_no_name_becomes_an_option(name: str) -> None:
    with pytest.raises(RecipeError, match=r"mesh\.hosts"):
        compose("demo", [f"mesh.hosts=[{name!r}]"])


def test_this_host_needs_no_remote_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    hosts.require(["localhost", "127.0.0.1", socket.gethostname()], {})
    with pytest.raises(BuildError, match="by ssh, which is not installed"):
        hosts.require(["localhost", "nosuch.invalid"], {})


def shell(folder: Path, script: str) -> dict[str, str]:
    """The environment in which a script takes the place of ssh."""
    path = folder / "shell"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"HYDRA_LAUNCHER_EXEC": str(path)}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Host key verification failed.' >&2; exit 255", "far: Host key verification failed"),
        ("exit 255", "far: shell ended with code 255"),
        ("exit 1", f"far: it has no {sys.executable}; install Paddock at the same place"),
        ("exec sleep 60", r"far: it has not answered for 0\.5 s"),
    ],
)
def test_what_is_wrong_with_a_host_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    monkeypatch.setattr(hosts, "TRIAL_S", 0.5)
    script = f'[ "$1" = near ] && exit 0\n{script}'
    with pytest.raises(BuildError, match=rf"^of 2 hosts in mesh.hosts 1 cannot run ranks: {said}"):
        hosts.require(["near", "far"], shell(tmp_path, script))


def test_a_host_is_asked_for_this_python(tmp_path: Path) -> None:
    hosts.require(["near"], shell(tmp_path, 'shift; exec sh -c "$*"'))


def test_where_a_cluster_starts_processes_names_need_only_resolve() -> None:
    with pytest.raises(BuildError, match=r"nosuch\.invalid: the name cannot be resolved"):
        hosts.require(["nosuch.invalid"], {"SLURM_JOB_ID": "7"})
