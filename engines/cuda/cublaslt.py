"""cuBLASLt by its C interface: what a captured step needs of it, and nothing else.

nvmath-python wraps the same calls, at 40 us of host time each and with objects that a capture must
outlive; the C interface is stable over the releases of CUDA 12 and 13 (0070-plain-handles.md).
Names and numbers are those of cublasLt.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from paddock.engines.protocol import BuildError
from paddock.graph import DType

COMPUTE_32F = 68
TYPES = {DType.F32: 0, DType.F16: 2, DType.BF16: 14}
E4M3 = 28
_TRANSA, _TRANSB, _EPILOGUE, _BIAS = 3, 4, 7, 8
_A_SCALE, _B_SCALE, _A_SCALE_MODE, _B_SCALE_MODE = 17, 18, 31, 32
_FAST_ACCUMULATION, _BIAS_TYPE = 25, 26
_TRANSPOSED, _EPILOGUE_BIAS, _OUTER_VECTOR, _WORKSPACE = 1, 4, 3, 1


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True)
class Shape:
    """y [rows, outputs] = x [rows, inputs] W [outputs, inputs]^T, all row-major."""

    rows: int
    outputs: int
    inputs: int
    dtype: DType  # of x and W, unless fp8
    result: DType
    bias: bool = False
    residual: bool = False
    fp8: bool = False  # x and W are e4m3 with an f32 scale for each of their rows
    unscaled: bool = False  # those scales are left out

    def __str__(self) -> str:
        kind = "e4m3" if self.fp8 else str(self.dtype)
        kind += " unscaled" if self.unscaled else ""
        extra = "".join(" +" + n for n in ("bias", "residual") if getattr(self, n))
        return f"{self.rows}x{self.outputs}x{self.inputs} {kind}->{self.result}{extra}"


class CublasLt:
    """One handle. Every call raises `BuildError` with the library's status where it fails."""

    def __init__(self, workspace_bytes: int) -> None:
        from cuda import pathfinder  # CuPy's own way to its libraries

        path = pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path
        self._lib = ctypes.CDLL(path)
        self._lib.cublasLtGetVersion.restype = ctypes.c_size_t
        self.workspace_bytes = workspace_bytes
        self._handle = ctypes.c_void_p()
        self._call("cublasLtCreate", ctypes.byref(self._handle))

    @cached_property
    def version(self) -> int:
        return int(self._lib.cublasLtGetVersion())

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._lib, name)(*arguments)
        if status != 0:
            raise BuildError(f"cuBLASLt: {name} failed with status {status}")

    def product(self, shape: Shape) -> Product:
        return Product(self, shape)


class Product:
    """A matrix product of one shape: descriptors, and the algorithms that the library proposes."""

    def __init__(self, lt: CublasLt, shape: Shape) -> None:
        self._lt, self.shape = lt, shape
        self._desc = ctypes.c_void_p()
        lt._call("cublasLtMatmulDescCreate", ctypes.byref(self._desc), COMPUTE_32F, 0)
        # Row-major y = x W^T is column-major y^T = W x^T: W is the first operand, transposed.
        self._set(_TRANSA, ctypes.c_int32(_TRANSPOSED))
        self._set(_TRANSB, ctypes.c_int32(0))
        if shape.bias:
            self._set(_EPILOGUE, ctypes.c_int32(_EPILOGUE_BIAS))
            self._set(_BIAS_TYPE, ctypes.c_int32(TYPES[shape.dtype]))
        if shape.fp8:
            if not shape.unscaled:
                self._set(_A_SCALE_MODE, ctypes.c_int32(_OUTER_VECTOR))
                self._set(_B_SCALE_MODE, ctypes.c_int32(_OUTER_VECTOR))
                # The library proposes nothing for scales that are nowhere; `run` sets them.
                self._set(_A_SCALE, ctypes.c_void_p(256))
                self._set(_B_SCALE, ctypes.c_void_p(256))
            self._set(_FAST_ACCUMULATION, ctypes.c_int8(1))
        operand = E4M3 if shape.fp8 else TYPES[shape.dtype]
        self._a = self._layout(operand, shape.inputs, shape.outputs)
        self._b = self._layout(operand, shape.inputs, shape.rows)
        self._d = self._layout(TYPES[shape.result], shape.outputs, shape.rows)
        self._alpha = ctypes.c_float(1)
        self._beta = ctypes.c_float(1 if shape.residual else 0)
        self.algorithms: list[_Heuristic] = []
        self.chosen = 0

    def _layout(self, kind: int, rows: int, columns: int) -> ctypes.c_void_p:
        layout = ctypes.c_void_p()
        self._lt._call(
            "cublasLtMatrixLayoutCreate",
            ctypes.byref(layout),
            kind,
            ctypes.c_uint64(rows),
            ctypes.c_uint64(columns),
            ctypes.c_int64(rows),
        )
        return layout

    def _set(self, attribute: int, value: ctypes._SimpleCData[int] | ctypes.c_void_p) -> None:
        self._lt._call(
            "cublasLtMatmulDescSetAttribute",
            self._desc,
            attribute,
            ctypes.byref(value),
            ctypes.c_size_t(ctypes.sizeof(value)),
        )

    def propose(self, count: int) -> None:
        """Ask the library for its best guesses. Raises `BuildError` where it has none."""
        preference = ctypes.c_void_p()
        self._lt._call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        room = ctypes.c_uint64(self._lt.workspace_bytes)
        self._lt._call(
            "cublasLtMatmulPreferenceSetAttribute",
            preference,
            _WORKSPACE,
            ctypes.byref(room),
            ctypes.c_size_t(8),
        )
        results, found = (_Heuristic * count)(), ctypes.c_int()
        status = self._lt._lib.cublasLtMatmulAlgoGetHeuristic(
            self._lt._handle,
            self._desc,
            self._a,
            self._b,
            self._d,
            self._d,
            preference,
            count,
            results,
            ctypes.byref(found),
        )
        self._lt._lib.cublasLtMatmulPreferenceDestroy(preference)
        self.algorithms = [r for r in results[: found.value] if r.state == 0]
        if status != 0 or not self.algorithms:
            raise BuildError(f"cuBLASLt has no algorithm for {self.shape} (status {status})")

    def run(
        self,
        x: int,
        weight: int,
        y: int,
        workspace: int,
        stream: int,
        *,
        bias: int = 0,
        residual: int = 0,
        x_scales: int = 0,
        weight_scales: int = 0,
        algorithm: int | None = None,
    ) -> None:
        """Enqueue the product; operands are device addresses."""
        if self.shape.bias:
            self._set(_BIAS, ctypes.c_void_p(bias))
        if self.shape.fp8 and not self.shape.unscaled:
            self._set(_A_SCALE, ctypes.c_void_p(weight_scales))
            self._set(_B_SCALE, ctypes.c_void_p(x_scales))
        algo = self.algorithms[self.chosen if algorithm is None else algorithm].algo
        self._lt._call(
            "cublasLtMatmul",
            self._lt._handle,
            self._desc,
            ctypes.byref(self._alpha),
            ctypes.c_void_p(weight),
            self._a,
            ctypes.c_void_p(x),
            self._b,
            ctypes.byref(self._beta),
            ctypes.c_void_p(residual or y),
            self._d,
            ctypes.c_void_p(y),
            self._d,
            ctypes.byref(algo),
            ctypes.c_void_p(workspace),
            ctypes.c_size_t(self._lt.workspace_bytes),
            ctypes.c_void_p(stream),
        )


Timer = Callable[[Callable[[], None]], float]


def fastest(product: Product, run: Callable[[int], None], timer: Timer) -> int:
    """Try the proposed algorithms and choose the one that takes least; those that fail are out."""
    best, chosen = float("inf"), 0
    for i in range(len(product.algorithms)):
        try:
            taken = timer(lambda i=i: run(i))  # type: ignore[misc]
        except BuildError:
            continue
        if taken < best:
            best, chosen = taken, i
    product.chosen = chosen
    return chosen
