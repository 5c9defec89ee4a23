"""The GPUs of this machine, asked of the driver itself: no package is needed for it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """A device that CUDA shows to this process."""

    name: str
    target: str
    """Compute capability as a target's name, e.g. "sm89"."""


@dataclass(frozen=True)
class Driver:
    """What the CUDA driver says."""

    version: tuple[int, int]
    """Of the newest CUDA that it runs; (0, 0) where there is no driver."""
    gpus: tuple[Gpu, ...]
    problem: str
    """Why there are no GPUs; empty where there are."""


@cache
def driver() -> Driver:
    """Asked once: neither driver nor GPUs come and go while a process runs."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver((0, 0), (), "this machine has no NVIDIA driver (libcuda.so.1)")
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    version = number.value // 1000, number.value % 1000 // 10
    status = library.cuInit(0)
    if status:
        return Driver(version, (), f"the NVIDIA driver gives no access to a GPU (error {status})")
    library.cuDeviceGetCount(ctypes.byref(number))
    gpus = tuple(_gpu(library, i) for i in range(number.value))
    return Driver(version, gpus, "" if gpus else "the NVIDIA driver shows no GPU")


def here() -> str | None:
    """The target of the first GPU, or None."""
    gpus = driver().gpus
    return gpus[0].target if gpus else None


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, value = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(128)
    library.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), "sm" + "".join(capability))
