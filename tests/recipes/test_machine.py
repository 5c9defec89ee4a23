"""What a process may use: affinity, hyper-threads, cgroups of both versions."""

import os
from pathlib import Path

import psutil
import pytest

from paddock.recipes.machine import measure
from paddock.recipes.pipeline import engine_options
from paddock.recipes.schema import Recipe


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def topology(cores: dict[int, tuple[int, int]]) -> dict[str, str]:
    files: dict[str, str] = {}
    for cpu, (package, core) in cores.items():
        place = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{place}/physical_package_id": f"{package}\n", f"{place}/core_id": f"{core}\n"}
    return files


def test_this_machine() -> None:
    machine = measure()
    assert 1 <= machine.cores <= len(os.sched_getaffinity(0))
    assert 0 < machine.free_bytes <= machine.memory_bytes <= psutil.virtual_memory().total
    assert machine.arch == os.uname().machine


@pytest.mark.parametrize(
    ("said", "threads"), [("1", 1), ("3,2", 3), ("", None), ("0", None), ("many", None)]
)
def test_threads_that_are_asked(
    monkeypatch: pytest.MonkeyPatch, said: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert measure().threads == threads
    wanted = engine_options(Recipe(name="x", checkpoint="x"))["threads"]
    cores = measure().cores
    assert wanted == min(cores, threads or cores)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert measure().threads is None


def test_hyper_threads_are_no_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, topology({0: (0, 0), 1: (0, 1), 2: (0, 0), 3: (0, 1), 4: (1, 0)}))
    for allowed, cores in (({0, 1, 2, 3, 4}, 3), ({0, 2}, 1), ({1, 4}, 2), ({0, 7}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, allowed=allowed: allowed)
        assert measure(root).cores == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 4)]
)
def test_cpu_quota_of_cgroup_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    files = topology({n: (0, n) for n in range(4)})
    files |= {"proc/self/cgroup": "0::/user/me\n", "sys/fs/cgroup/user/cpu.max": f"{quota}\n"}
    assert measure(write(tmp_path, files)).cores == cores


def test_cpu_quota_of_cgroup_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    files = topology({n: (0, n) for n in range(4)}) | {
        "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/y\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert measure(write(tmp_path, files)).cores == 3
    write(tmp_path, {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n"})
    assert measure(tmp_path).cores == 4


def test_memory_of_cgroup_2(tmp_path: Path) -> None:
    """The tightest of the groups counts; old file pages in it are as good as free."""
    files = {
        "proc/self/cgroup": "0::/user/me\n",
        "sys/fs/cgroup/user/memory.max": f"{600 << 20}\n",
        "sys/fs/cgroup/user/memory.current": f"{500 << 20}\n",
        "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {300 << 20}\nactive_file 7\n",
        "sys/fs/cgroup/user/me/memory.max": "max\n",
        "sys/fs/cgroup/user/me/memory.current": "5\n",
    }
    machine = measure(write(tmp_path, files))
    assert machine.memory_bytes == 600 << 20
    assert machine.free_bytes == 400 << 20


def test_memory_of_cgroup_1_with_the_hosts_path(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "9:memory:/docker/not-in-here\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{256 << 20}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{56 << 20}\n",
    }
    machine = measure(write(tmp_path, files))
    assert machine.memory_bytes == 256 << 20
    assert machine.free_bytes == 200 << 20
    write(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert measure(tmp_path).memory_bytes == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_native_bf16(tmp_path: Path, cpuinfo: str, bf16: bool) -> None:
    assert measure(write(tmp_path, {"proc/cpuinfo": cpuinfo})).has_bf16 is bf16
