"""What this machine lets a process use: cores and memory, with affinity and cgroups respected."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from paddock.engines import processor

GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """As seen by this process, now."""

    cores: int
    """Physical cores that it may run on, no more than its share of CPU time."""
    memory_bytes: int
    """All that it may ever have."""
    free_bytes: int
    """What it could have now without swapping or being killed."""
    arch: str
    """E.g. "x86_64"."""
    features: frozenset[str] = frozenset()
    """Instruction sets by the kernel's names, e.g. "avx512_bf16"; empty where it does not tell."""
    threads: int | None = None
    """What OMP_NUM_THREADS asks of each process, as users of numerical libraries set it."""

    @property
    def has_bf16(self) -> bool:
        """Whether the cores multiply bf16 by themselves."""
        return bool(self.features & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})


def measure(root: Path = Path("/")) -> Machine:
    """This machine; `root` is where proc and sys lie."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in _cgroup_memory(root):
        total, free = min(total, limit), min(free, max(limit - used, 0))
    cores = _physical_cores(root)
    share = _cgroup_cpus(root)
    return Machine(
        cores=max(1, min(cores, math.ceil(share))) if share else cores,
        memory_bytes=total,
        free_bytes=free,
        arch=platform.machine(),
        threads=_asked_threads(),
        features=processor.features(root / "proc/cpuinfo"),
    )


def _asked_threads() -> int | None:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is by nesting
    return int(first) if first.isascii() and first.isdigit() and int(first) else None


def _physical_cores(root: Path) -> int:
    """Cores, not hyper-threads, among the CPUs of this process's affinity mask."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    found = set()
    for cpu in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = _text(topology / "physical_package_id"), _text(topology / "core_id")
        found.add((package, core) if package and core else ("", str(cpu)))
    return max(1, len(found))


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """This process's group and those around it, of cgroup v2 and of v1's `controller`.

    Inside a container the path in /proc/self/cgroup may be the host's: the mount's root counts too.
    """
    mount = root / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount if not controllers else mount / controllers
        if controllers and not top.is_dir():
            top = mount / controller
        place = top / path.strip("/")
        folders += [place, *(p for p in place.parents if p == top or top in p.parents), top]
    return list(dict.fromkeys(folders))


def _cgroup_memory(root: Path) -> list[tuple[int, int]]:
    """Limit and use, in bytes, of each group that has a limit."""
    found = []
    for folder in _cgroup_folders(root, "memory"):
        for limit_file, use_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_file), _number(folder / use_file)
            if limit is None or limit >= 1 << 60:  # v1 writes a huge number for none
                continue
            # File pages that were read long ago are dropped before anything is killed.
            dropped = [
                int(line.split()[1])
                for line in _text(folder / "memory.stat").splitlines()
                if line.split()[:1] in (["inactive_file"], ["total_inactive_file"])
            ]
            found.append((limit, max((used or 0) - max(dropped, default=0), 0)))
    return found


def _cgroup_cpus(root: Path) -> float | None:
    """CPUs' worth of time that the tightest quota allows."""
    shares = []
    for folder in _cgroup_folders(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            shares.append(int(quota) / int(period))
        old = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if old[0] and old[1] and old[0] > 0:
            shares.append(old[0] / old[1])
    return min(shares, default=None)


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.lstrip("-").isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
