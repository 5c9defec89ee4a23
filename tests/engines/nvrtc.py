"""NVIDIA's compiler of CUDA C++, which needs no GPU: `make tensorrt` installs it."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import pytest


@cache
def _library() -> tuple[ctypes.CDLL, Path]:
    """NVRTC, and the folder of CUDA's headers. Skips the test where they are not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in map(Path, (spec.submodule_search_locations or []) if spec else []):
        for found in sorted(folder.glob("cu*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(found)), found.parents[1] / "include"
    pytest.skip("NVRTC is not installed (`make tensorrt` installs it)")


def ptx(code: str, architecture: str, *options: str) -> str:
    """The PTX of CUDA C++, e.g. for "compute_80". Raises `ValueError` with the compiler's words."""
    nvrtc, include = _library()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    status = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), code.encode(), b"source.cu", 0, None, None
    )
    assert status == 0
    told = [f"--gpu-architecture={architecture}", f"-I{include}", *options]
    texts = (ctypes.c_char_p * len(told))(*(t.encode() for t in told))
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(told), texts)
        what = "ProgramLog" if failed else "PTX"
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise ValueError(text.value.decode(errors="replace"))
    return text.value.decode()
