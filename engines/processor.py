"""Which instruction sets this processor has, where it decides between settings."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def multiplies_bf16_in_vectors() -> bool:
    """Whether it has products of bf16 in vector registers and no tiles (AMX).

    False where the system does not tell.
    """
    return in_vectors(features())


def in_vectors(sets: frozenset[str]) -> bool:
    """The same, of a processor with these instruction sets."""
    return "avx512_bf16" in sets and "amx_tile" not in sets


def features(file: Path = CPUINFO) -> frozenset[str]:
    """Instruction sets by Linux's names, as it tells them in a file; none where it does not."""
    try:
        lines = file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":") for line in lines)
    return next(
        (
            frozenset(value.split())
            for name, _, value in named
            if name.strip() in ("flags", "Features")  # on x86, on Arm
        ),
        frozenset(),
    )
