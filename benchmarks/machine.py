"""What figures were taken on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, memory, and whether the machine is a virtual one."""
    cpu = {}
    for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        cpu[name.strip()] = value.strip()
    flags = set(cpu.get("flags", "").split())
    wanted = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_int8",
        "amx_bf16",
    )
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "family, model, stepping": ", ".join(
            cpu.get(name, "?") for name in ("cpu family", "model", "stepping")
        ),
        "extensions": [flag for flag in wanted if flag in flags],
        "cpus": sum(
            line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines()
        ),
        "memory_gb": round(int(memory) * 1024 / 1e9, 1),
        "kernel": platform.release(),
        "virtual": "hypervisor" in flags,
    }
