"""Read a safetensors file: its header checked whole, its data mapped and copied by the slice.

The format: 8 bytes, the header's length n (little-endian); n bytes of JSON, one object
`{name: {"dtype", "shape", "data_offsets"}}` with an optional `__metadata__` of strings; then the
data, every byte of which belongs to one tensor. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from paddock.graph import Array, DType
from paddock.weights.errors import WeightError

Box = tuple[tuple[int, int], ...]  # start and stop along each axis

MAX_HEADER = 100_000_000  # bytes, as in the reference implementation
MAX_NAME = 1024  # characters
MAX_AXES = 16

# Element types of the format, with their size in bits and the NumPy type that holds one.
_DTYPES: dict[str, tuple[int, Any]] = {
    "BOOL": (8, np.bool_),
    "U8": (8, np.uint8),
    "I8": (8, np.int8),
    "F8_E4M3": (8, ml_dtypes.float8_e4m3fn),
    "F8_E5M2": (8, ml_dtypes.float8_e5m2),
    "F8_E8M0": (8, ml_dtypes.float8_e8m0fnu),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U16": (16, np.uint16),
    "I16": (16, np.int16),
    "F16": (16, np.float16),
    "BF16": (16, ml_dtypes.bfloat16),
    "U32": (32, np.uint32),
    "I32": (32, np.int32),
    "F32": (32, np.float32),
    "U64": (64, np.uint64),
    "I64": (64, np.int64),
    "F64": (64, np.float64),
    "C64": (64, np.complex64),
}

# The graph's element types by their name in a file; i4 has none and is stored packed, as U8.
CODES: dict[DType, str] = {
    DType.F64: "F64",
    DType.F32: "F32",
    DType.F16: "F16",
    DType.BF16: "BF16",
    DType.I64: "I64",
    DType.I32: "I32",
    DType.I8: "I8",
    DType.U8: "U8",
    DType.F8E4M3: "F8_E4M3",
    DType.BOOL: "BOOL",
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; `read` is the only thing that touches its data."""

    name: str
    dtype: str  # as the format names it, e.g. BF16
    shape: tuple[int, ...]
    offset: int = 0  # of its first byte in the file
    nbytes: int = 0
    file: SafetensorsFile | None = field(default=None, repr=False, compare=False)

    @property
    def graph_dtype(self) -> DType | None:
        """The graph's type for these elements, or None where the graph has none."""
        return next((dtype for dtype, code in CODES.items() if code == self.dtype), None)

    @property
    def whole(self) -> Box:
        return tuple((0, size) for size in self.shape)

    def read(self, box: Box | None = None) -> Array:
        """A copy of the elements in `box` (all of them by default); other bytes are not read."""
        if self.file is None:
            raise WeightError(f"{self.name}: only its header is known, there is no data to read")
        return self.file.read(self.name, self.whole if box is None else box)


class SafetensorsFile:
    """An open file. Opening reads and checks the header alone.

    Raises `WeightError`, naming file and tensor, for anything that the format does not allow.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                header = _header_bytes(self.path, file.read(8), self.size)
                length = int.from_bytes(header, "little")
                text = file.read(length)
        except OSError as error:
            raise WeightError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if len(text) < length:
            raise WeightError(f"{self.path}: it became shorter while it was read")
        self.data_start = 8 + length
        self.header = header + text
        self.metadata, self.tensors = _parse(self, text)
        self.bytes_read = 0  # of tensor data, by `read`
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None

    def map(self) -> mmap.mmap:
        """The whole file, mapped read-only. Keep it as long as any view of its data."""
        with self._lock:
            if self._map is None:
                try:
                    with self.path.open("rb") as file:
                        if os.fstat(file.fileno()).st_size != self.size:
                            raise WeightError(
                                f"{self.path}: its size changed since its header was read"
                            )
                        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:
                    raise WeightError(f"{self.path}: cannot be mapped: {error}") from error
            return self._map

    def view(self, name: str) -> Array:
        """A tensor's data in the mapping itself: read-only, nothing is copied."""
        info = self.tensors[name]
        numpy_type = _DTYPES[info.dtype][1]
        if numpy_type is None:
            raise WeightError(f"{self.path}: {name}: {info.dtype} elements cannot be read")
        if not info.nbytes:
            return np.empty(info.shape, numpy_type)
        data = np.frombuffer(self.map(), np.uint8, info.nbytes, info.offset)
        return data.view(numpy_type).reshape(info.shape)

    def read(self, name: str, box: Box) -> Array:
        """A copy of the elements in `box`; other bytes are not read."""
        view = self.view(name)
        index = tuple(slice(start, stop) for start, stop in box)
        part = view[index] if index else view
        copy = np.array(part, copy=True, order="C")
        with self._lock:
            self.bytes_read += copy.nbytes
        return copy

    def release(self, name: str) -> None:
        """Let the system drop a tensor's pages; they are read again when asked for."""
        info = self.tensors[name]
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (info.offset + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _header_bytes(path: Path, start: bytes, size: int) -> bytes:
    """The 8 bytes of the header's length, where that length can be true."""
    if len(start) < 8:
        raise WeightError(
            f"{path}: {size} bytes are too few for a safetensors file; is the download complete?"
        )
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise WeightError(
            f"{path}: not a safetensors file: its first 8 bytes announce a header of {length}"
            f" bytes, where {MAX_HEADER} are allowed"
        )
    if length > size - 8:
        raise WeightError(
            f"{path}: its header is said to be {length} bytes long, but the file ends after"
            f" {size - 8}; download it again"
        )
    return start


def _parse(file: SafetensorsFile, text: bytes) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata, and tensors in the order of their data."""
    path = file.path
    entries = _json_object(path, text)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightError(f"{path}: __metadata__ is not an object of strings")
    tensors = [_tensor(file, name, entry) for name, entry in entries.items()]
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    end, before = file.data_start, "the header"
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps" if tensor.offset < end else "leaves a gap after"
            raise WeightError(
                f"{path}: {_shown(tensor.name)}: its data at byte {tensor.offset - file.data_start}"
                f" {what} that of {before}, which ends at byte {end - file.data_start}"
            )
        end, before = tensor.offset + tensor.nbytes, _shown(tensor.name)
    if end != file.size:
        raise WeightError(
            f"{path}: {file.size - end} bytes after the last tensor ({before}) belong to none;"
            " the file is damaged: download it again"
        )
    return metadata, {tensor.name: tensor for tensor in tensors}


def _json_object(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise WeightError(f"{path}: the header names {_shown(name)} twice")
            found[name] = value
        return found

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # also of UTF-8 and of absurdly long numbers
        reason = str(error).splitlines()[0][:200]
        raise WeightError(f"{path}: not a safetensors file: its header: {reason}") from error
    if not isinstance(header, dict):
        raise WeightError(f"{path}: not a safetensors file: its header is not a JSON object")
    return header


def _tensor(file: SafetensorsFile, name: str, entry: object) -> TensorInfo:
    """One entry of the header, checked as far as it can be alone."""
    where = f"{file.path}: {_shown(name)}"
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise WeightError(
            f"{where}: not a tensor's name: expected 1 to {MAX_NAME} printable characters,"
            f" found {len(name)}"
        )
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightError(f"{where}: its entry is not {{dtype, shape, data_offsets}}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WeightError(
            f"{where}: unknown dtype {_shown(dtype)}; the format has {', '.join(_DTYPES)}"
        )
    if not _is_sizes(shape) or len(shape) > MAX_AXES:
        raise WeightError(
            f"{where}: shape {_shown(shape)} is not a list of at most {MAX_AXES} sizes"
        )
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise WeightError(f"{where}: data_offsets {_shown(offsets)} are not [begin, end]")
    begin, end = offsets
    available = file.size - file.data_start
    if begin > end or end > available:
        raise WeightError(
            f"{where}: data_offsets [{begin}, {end}] do not lie within the {available} bytes of"
            " data; the file is truncated or damaged: download it again"
        )
    bits = prod(shape) * _DTYPES[dtype][0]
    if bits != 8 * (end - begin):
        raise WeightError(
            f"{where}: {dtype} {_shown(shape)} takes {-(-bits // 8)} bytes, its data_offsets"
            f" hold {end - begin}"
        )
    return TensorInfo(name, dtype, tuple(shape), file.data_start + begin, end - begin, file)


def _is_sizes(value: object) -> bool:
    """A list of integers of 0 and more; 2^63 and more is nobody's size."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
