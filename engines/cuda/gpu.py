"""One NVIDIA GPU: memory, kernels, matrix products, captured graphs. All that touches CuPy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from paddock.engines.cuda.cublaslt import CublasLt, Product, Shape, fastest
from paddock.engines.cuda.cudnn_attention import CuDNN
from paddock.engines.cuda.device import Instruction, StoredWeight
from paddock.engines.cuda.nccl import HostRanks, NcclRanks, Place, Ranks
from paddock.engines.cuda.tuned import Tuned
from paddock.engines.cuda.uploader import Uploader
from paddock.engines.protocol import BuildError
from paddock.graph import Array, DType
from paddock.graph.ops import Communicator

KERNELS = Path(__file__).resolve().parent / "kernels"
WITH_TENSOR_CORES = ("attend", "experts")
WORKSPACE = 64 << 20  # of cuBLASLt: what NVIDIA advises for Hopper is 32 MiB
FLUSH = 128 << 20  # more than the cache of any GPU, written before an algorithm is timed
# Percent of L1 and shared memory together that a kernel wants as the latter. What is read passes
# through the rest: where one kernel takes nearly all, the one behind it has little on its way while
# they overlap. Measured on an H200: 3 % of a step of one sequence of 1024, -2 % at 8000.
CARVEOUT = {"attend_singles": 50}
COUNTERS = 1 << 16  # sequences x groups of heads of a step of single tokens; rows of logits


class _Config(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    )


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a number, padding, and a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16))


_OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_NUMBERS: dict[type, Any] = {
    np.int32: ctypes.c_int32,
    np.int64: ctypes.c_int64,
    np.float32: ctypes.c_float,
}


class GPU:
    """The device that sessions run on.

    `overlap`: kernels may begin before the one ahead ended. `own`: of several ranks, each has a GPU
    of its own, and they meet by NCCL; otherwise they are threads that share one.
    """

    def __init__(
        self, *, overlap: bool = True, tuned: Path | None = None, own: bool = False
    ) -> None:
        try:
            import cupy
        except ImportError as error:
            raise BuildError(
                f"the cuda engine needs CuPy: {error}; pip install 'paddock[cuda]'"
            ) from error
        self.cupy = cupy
        try:
            self.name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BuildError(f"the cuda engine finds no NVIDIA GPU: {error}") from error
        self.name = self.name.decode() if isinstance(self.name, bytes) else self.name
        self.processors = cupy.cuda.Device().attributes["MultiProcessorCount"]
        self.capability = int(cupy.cuda.Device().compute_capability)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._overlap = overlap and self.capability >= 90
        self._attribute = _Attribute(_OVERLAP, 0, (ctypes.c_int * 16)(1))
        self.lt = CublasLt(WORKSPACE)
        self._workspace = cupy.empty(WORKSPACE, np.uint8)
        self._flush = cupy.empty(FLUSH, np.uint8)
        self._products: dict[Shape, Product] = {}
        self._tuned = Tuned(tuned, f"{self.name} cublasLt {self.lt.version}")
        self._uploader = Uploader(cupy)
        self._modules: dict[tuple[Any, ...], Any] = {}
        self._functions: dict[tuple[Any, ...], int] = {}
        self.max_blocks = 128
        self.cudnn = self._find_cudnn()
        self._pages: dict[tuple[int, int, int], tuple[Any, ...]] = {}
        self._laid_out: set[tuple[int, int, int]] = set()
        self._constants: dict[tuple[float, ...], Any] = {}
        self._lookups: dict[Hashable, Any] = {}
        # Kernels leave both as they found them: 0.
        self.counters = self.zeros((COUNTERS,), np.dtype(np.int32))
        self.best = self.zeros((COUNTERS,), np.dtype(np.uint64))
        self.timed: Callable[[str, float], None] | None = None  # a profile of eager steps
        self._own = own
        self._ranks: Ranks | None = None

    @property
    def ranks(self) -> Ranks:
        """What the step's collectives go through."""
        if self._ranks is None:
            raise BuildError("the step has collectives, and this GPU is one rank alone")
        return self._ranks

    def join(self, place: Place, communicator: Communicator) -> None:
        """Meet the ranks that this one exchanges with, which all call this."""
        if self._own:
            self._ranks = NcclRanks(self.stream, place, communicator)
        else:
            self._ranks = HostRanks(self, communicator)

    def _find_cudnn(self) -> CuDNN | None:
        """cuDNN's attention, where its package is installed and finds the library."""
        if self.capability < 80:
            return None
        try:
            import cudnn

            return CuDNN(
                cudnn, self.stream.ptr, lambda nbytes: self.zeros((nbytes,), np.dtype(np.uint8))
            )
        except (ImportError, OSError, RuntimeError):
            return None

    # --- memory -------------------------------------------------------------------------------

    def memory(self, fraction: float = 1.0) -> tuple[int, int]:
        """Free and total bytes, of a share of the GPU; what CuPy's pool holds unused is free."""
        pool = self.cupy.get_default_memory_pool()
        free, total = self.cupy.cuda.runtime.memGetInfo()
        share = int(total * fraction)
        return max(0, min(free + pool.free_bytes(), share - pool.used_bytes())), share

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Raises `MemoryError` where the GPU has not so much."""
        try:
            with self.stream:
                return self.cupy.zeros(tuple(shape), dtype)
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    def dense(self, stored: StoredWeight) -> Any:
        """The matrix that integers and scales stand for."""
        from paddock.engines.cuda.lowering import dequantize

        made = self.zeros(stored.shape, stored.dtype.numpy)
        dequantize(self, stored, made)
        return made

    def fp8(self, weight: Any, dtype: DType) -> StoredWeight:
        """A dense matrix as e4m3 with a scale for each row."""
        from paddock.engines.cuda.lowering import to_fp8

        values = self.zeros(weight.shape, np.dtype(np.uint8))
        scales = self.zeros(weight.shape[:1], np.dtype(np.float32))
        to_fp8(self, weight, dtype, values, scales)
        return StoredWeight("f8", values, scales, dtype, weight.shape)

    def upload(self, array: Array, out: Any = None, *, wait: bool = True) -> Any:
        """A copy on the device, through page-locked buffers; the source may be memory-mapped."""
        cp = self.cupy
        if isinstance(array, cp.ndarray):  # it is there already
            if out is None:
                return array
            with self.stream:
                out[...] = array
            return out
        made = self.zeros(array.shape, array.dtype) if out is None else out
        self.stream.synchronize()  # the copies go by streams of their own
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._uploader.start(source, made.data.ptr)
        if wait:
            self._uploader.wait()
        return made

    def arrived(self) -> None:
        """Wait for what was uploaded without waiting."""
        self._uploader.wait()

    def constant(self, values: tuple[float, ...]) -> Any:
        """The same f32 array whenever it is asked for."""
        if values not in self._constants:
            self._constants[values] = self.upload(np.asarray(values, np.float32))
        return self._constants[values]

    def lookup(self, key: Hashable, make: Callable[[], Array]) -> Any:
        """An i32 array on the device, made when its key first comes; so outside of a capture."""
        if key not in self._lookups:
            self._lookups[key] = self.upload(np.ascontiguousarray(make(), np.int32))
        return self._lookups[key]

    def clear(self, array: Any) -> None:
        """Enqueue zeros into an array."""
        self.cupy.cuda.runtime.memsetAsync(array.data.ptr, 0, array.nbytes, self.stream.ptr)

    def download(self, array: Any) -> Array:
        """A copy on the host, after all that was enqueued."""
        with self.stream:
            return self.cupy.asnumpy(array)

    def pinned(self, nbytes: int) -> Array:
        """Page-locked host memory, which copies run from while the host goes on."""
        memory = self.cupy.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)

    def write(self, target: Any, source: Array) -> None:
        """Enqueue a copy of page-locked bytes to the start of a device array."""
        self.cupy.cuda.runtime.memcpyAsync(
            target.data.ptr, source.ctypes.data, source.nbytes, 1, self.stream.ptr
        )

    def read(self, target: Array, source: Any) -> None:
        """Enqueue a copy of a device array into page-locked memory."""
        self.cupy.cuda.runtime.memcpyAsync(
            target.ctypes.data, source.data.ptr, source.nbytes, 2, self.stream.ptr
        )

    def mark(self) -> Any:
        """A point in the stream, whose `synchronize()` waits for all before it."""
        event = self.cupy.cuda.Event(disable_timing=True)
        event.record(self.stream)
        return event

    def cache(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Blocks as kernels have them: [blocks, heads, block size, size], for one head's tokens to
        lie together; `shape` is [blocks, block size, heads, size]."""
        blocks, block_size, heads, size = shape
        eighths = dtype.itemsize == 1  # e4m3, which CuPy does not know
        kind = np.dtype(np.uint8) if eighths else dtype
        return self.zeros((blocks, heads, block_size, size), kind)

    def close(self) -> None:
        self.stream.synchronize()
        self._uploader.close()
        self._products.clear()
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None
        self.cupy.get_default_memory_pool().free_all_blocks()  # another process may want it

    # --- kernels ------------------------------------------------------------------------------

    def function(self, source: str, name: str, **defines: int) -> int:
        """The driver's handle of a kernel of `kernels/<source>.cu`, compiled when first asked."""
        key = (source, name, *sorted(defines.items()))
        if key not in self._functions:
            module_key = (source, *sorted(defines.items()))
            if module_key not in self._modules:
                options = ("-std=c++17", *(f"-D{k}={v}" for k, v in defines.items()))
                self._modules[module_key] = self.cupy.RawModule(
                    code=_source(source), options=options, backend="nvrtc"
                )
            kernel = self._modules[module_key].get_function(name)
            if source in ("attend", "attend_any", "experts", "few_rows", "one_row", "streamed"):
                most = 227 * 1024 - kernel.shared_size_bytes  # of Hopper, with what is static
                kernel.max_dynamic_shared_size_bytes = min(220 * 1024, most)
            if name in CARVEOUT:
                kernel.preferred_shared_memory_carveout = CARVEOUT[name]
            self._functions[key] = kernel.kernel.ptr
        return self._functions[key]

    def compiled(self, source: str, name: str) -> int:
        """The same of CUDA C++ of a plugin's own, for its op's `lowerings["cuda"]` to launch.

        A lowering is called as `lowering(gpu, instruction)`; see `paddock.engines.cuda.lowering`.
        """
        key = (source, name)
        if key not in self._functions:
            module = self.cupy.RawModule(code=source, options=("-std=c++17",), backend="nvrtc")
            self._modules[key] = module  # which owns the function
            self._functions[key] = module.get_function(name).kernel.ptr
        return self._functions[key]

    def launch(
        self, function: int, grid: Sequence[int], block: int, *arguments: Any, shared: int = 0
    ) -> None:
        """Enqueue a kernel, unless its grid is empty.

        Arguments: device arrays or addresses, None, NumPy numbers.
        """
        if 0 in grid:
            return
        held = [_argument(a) for a in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(a) for a in held))
        sizes = (*grid, 1, 1)[:3]
        config = _Config(
            (ctypes.c_uint * 3)(*sizes),
            (ctypes.c_uint * 3)(block, 1, 1),
            shared,
            self.stream.ptr,
            ctypes.addressof(self._attribute) if self._overlap else None,
            1 if self._overlap else 0,
        )
        status = self._driver.cuLaunchKernelEx(
            ctypes.byref(config), ctypes.c_void_p(function), pointers, None
        )
        if status != 0:
            raise BuildError(f"cuLaunchKernelEx failed with status {status}")

    def pages(
        self, singles: int, prompts: int, row: int, step: Sequence[Any]
    ) -> tuple[Any, Any, Any, Any]:
        """The step's tables, query counts, lengths and offsets for cuDNN; made once a step."""
        rows, key = singles + prompts, (singles, prompts, row)
        if key not in self._pages or self._pages[key][0].shape[1] != self.max_blocks:
            i32 = np.dtype(np.int32)
            self._pages[key] = (
                self.zeros((rows, self.max_blocks), i32),
                self.zeros((rows,), i32),
                self.zeros((rows,), i32),
                self.zeros((prompts + 1,), np.dtype(np.int64)),
            )
        tables, queries, lengths, offsets = self._pages[key]
        if key not in self._laid_out:
            self._laid_out.add(key)
            self.launch(
                self.function("pages", "pages", TYPE=0),
                (rows,),
                128,
                *step,
                np.int32(step[1].shape[0]),
                np.int32(singles),
                np.int32(prompts),
                np.int32(self.max_blocks),
                np.int64(row),
                tables,
                queries,
                lengths,
                offsets,
            )
        return tables, queries, lengths, offsets

    # --- matrix products ----------------------------------------------------------------------

    def matmul(
        self,
        shape: Shape,
        x: Any,
        weight: Any,
        y: Any,
        *,
        bias: Any = None,
        residual: Any = None,
        x_scales: Any = None,
        weight_scales: Any = None,
    ) -> None:
        """Enqueue a product by the algorithm that was fastest when the shape first came."""

        product = self._products.get(shape) or self.lt.product(shape)

        def run(algorithm: int | None) -> None:
            product.run(
                x.data.ptr,
                weight.data.ptr,
                y.data.ptr,
                self._workspace.data.ptr,
                self.stream.ptr,
                bias=_address(bias),
                residual=_address(residual),
                x_scales=_address(x_scales),
                weight_scales=_address(weight_scales),
                algorithm=algorithm,
            )

        if shape not in self._products:
            self._products[shape] = product
            product.propose(8 if shape.rows <= 1024 else 3)  # large ones take long to try
            known = self._tuned.get(str(shape))
            if known is not None and known < len(product.algorithms):
                product.chosen = known
            elif not self.stream.is_capturing():
                self._tuned.put(str(shape), fastest(product, run, self._time))
        run(None)

    def _time(self, run: Callable[[], None]) -> float:
        """Milliseconds of one run that finds nothing in the GPU's cache: the least of three."""
        run()
        begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        taken = []
        for _ in range(3):
            with self.stream:
                self._flush.fill(0)
            begin.record(self.stream)
            run()
            end.record(self.stream)
            end.synchronize()
            taken.append(float(self.cupy.cuda.get_elapsed_time(begin, end)))
        return min(taken)

    # --- steps --------------------------------------------------------------------------------

    def execute(self, instructions: Sequence[Instruction]) -> None:
        """Enqueue instructions one by one."""
        from paddock.engines.cuda.lowering import emit

        self._laid_out.clear()
        for instruction in instructions:
            if self.timed is None:
                emit(self, instruction)
            else:
                begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
                begin.record(self.stream)
                emit(self, instruction)
                end.record(self.stream)
                end.synchronize()
                took = float(self.cupy.cuda.get_elapsed_time(begin, end))
                self.timed(instruction.name, took)

    def capture(self, instructions: Sequence[Instruction]) -> Callable[[], None]:
        """The same as one CUDA graph: what is returned launches it."""
        if self._ranks is not None and not self._ranks.captures:
            return lambda: self.execute(instructions)
        self.stream.begin_capture()
        try:
            self.execute(instructions)
        finally:
            graph = self.stream.end_capture()

        def launch() -> None:
            graph.launch(self.stream)

        return launch


def _address(array: Any) -> int:
    return 0 if array is None else int(array.data.ptr)


def _argument(value: Any) -> Any:
    kind = _NUMBERS.get(type(value))
    if kind is not None:
        return kind(value.item())
    if value is None or isinstance(value, int):
        return ctypes.c_void_p(value or 0)
    return ctypes.c_void_p(value.data.ptr)


@cache
def _source(name: str) -> str:
    headers = ["common.cuh"] + ["tensor_cores.cuh"] * (name in WITH_TENSOR_CORES)
    return "\n".join((KERNELS / file).read_text("utf-8") for file in (*headers, f"{name}.cu"))
