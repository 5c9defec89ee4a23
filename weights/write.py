"""Write bound weights: convert, slice and quantize what a binding says, in bounded memory."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from paddock.graph import Array, DType
from paddock.graph.ops import scale_name, scale_shape
from paddock.weights.bind import Binding, BoundSlot
from paddock.weights.bound import DATA, MANIFEST, SLOTS_KEY, VERSION
from paddock.weights.errors import WeightError
from paddock.weights.quantize import INT4_STEPS, pack_int4, quantize_rows
from paddock.weights.safetensors_file import CODES, SafetensorsFile, TensorInfo
from paddock.weights.source import cast
from paddock.weights.workers import Progress, Work, available_cpus, run

ALIGNMENT = 64  # bytes: a cache line, and what vector instructions like best
CHUNK = 1 << 17  # elements that a thread converts at a time: they stay in its cache

log = logging.getLogger(__name__)


@dataclass
class _Output:
    """One array of the data file."""

    name: str
    code: str  # the format's element type
    shape: tuple[int, ...]  # as stored
    entry: dict[str, Any]  # how `bound` reads it
    offset: int = 0  # in the file

    @property
    def nbytes(self) -> int:
        bits = DType.U8.bits if self.code == "U8" else _BITS[self.code]
        return prod(self.shape) * bits // 8


@dataclass
class _Result:
    """What the threads find out, by slot (or `slot#part`)."""

    digests: dict[str, str] = field(default_factory=dict)
    nonfinite: set[str] = field(default_factory=set)


_BITS = {code: dtype.bits for dtype, code in CODES.items()}


def write(
    binding: Binding,
    folder: str | Path,
    dtype: DType,
    *,
    progress: Progress = False,
    int4_steps: tuple[float, ...] = INT4_STEPS,
    threads: int | None = None,
) -> dict[str, Any]:
    """Put one rank's weights into an existing folder and return what its manifest says of them.

    `dtype` is that of unquantized weights. A slot that equals checkpoint tensors byte for byte is
    referenced, any other is written. Both files appear whole or not at all. `int4_steps` are the
    steps that int4 groups choose from (see `quantize`); fewer are faster and a little worse.
    `progress` gets the bytes of the checkpoint that are done.

    The manifest's `content` is a hash of all weights, `nonfinite` names slots with NaN or
    infinite weights, which are also logged as a warning. Raises `WeightError`, as for a full
    disk.
    """
    folder = Path(folder)
    references = {n: s for n, s in binding.slots.items() if _is_stored(s, dtype)}
    made = {name: slot for name, slot in binding.slots.items() if name not in references}
    outputs = {name: _outputs(slot, dtype) for name, slot in made.items()}
    header = _header(
        [output for of_slot in outputs.values() for output in of_slot],
        {name: _referenced_entry(slot) for name, slot in references.items()},
    )
    size = len(header) + sum(o.nbytes for of_slot in outputs.values() for o in of_slot)
    result = _Result()

    def bind(name: str) -> Callable[[Work], None]:
        if name in references:
            return lambda work: _check_referenced(references[name], result, work)
        return lambda work: _make(made[name], outputs[name], fd, dtype, int4_steps, result, work)

    with _published(folder, DATA, size) as fd:
        _write_all(fd, header, 0)
        run(
            [bind(name) for name in binding.slots],
            total=sum(_source_bytes(slot) for slot in binding.slots.values()),
            threads=threads or available_cpus(),
            label="weights",
            progress=progress,
        )
    digests = {
        key: result.digests[key]
        for name, slot in binding.slots.items()
        for key in (
            [o.name for o in outputs[name]]
            if name in outputs
            else [f"{name}#{part.name}" for part in slot.parts]
        )
    }
    nonfinite = [name for name in binding.slots if name in result.nonfinite]
    manifest = {
        "version": VERSION,
        "dtype": str(dtype),
        "content": _content(header, digests),
        "bytes": size,
        "referenced_bytes": sum(
            {
                t.name: t.nbytes for slot in references.values() for t in _tensors(slot).values()
            }.values()
        ),
        "nonfinite": nonfinite,
        "header_sha256": hashlib.sha256(header).hexdigest(),
        "references": _references(references, digests),
        "digests": digests,
    }
    text = json.dumps(manifest, indent=1).encode()
    with _published(folder, MANIFEST, len(text)) as fd:
        _write_all(fd, text, 0)
    if nonfinite:
        more = f" and {len(nonfinite) - 1} more slots" if len(nonfinite) > 1 else ""
        log.warning(
            "%s%s: weights that are NaN or infinite (in %s, after conversion to it); what the model"
            " computes with them is not to be relied on",
            nonfinite[0],
            more,
            dtype,
        )
    return manifest


def _is_stored(slot: BoundSlot, dtype: DType) -> bool:
    """Whether every part is a checkpoint tensor as it lies in its file."""
    wanted = slot.dtype or dtype
    return slot.quant is None and all(
        (tensor := part.tensor()) is not None
        and tensor.file is not None
        and tensor.graph_dtype is wanted
        and tensor.offset % (wanted.bits // 8) == 0  # else views would be misaligned
        for part in slot.parts
    )


def _tensors(slot: BoundSlot) -> dict[str, TensorInfo]:
    """Part -> the checkpoint tensor that it is."""
    return {part.name: tensor for part in slot.parts if (tensor := part.tensor()) is not None}


def _outputs(slot: BoundSlot, dtype: DType) -> list[_Output]:
    """The arrays that hold a slot: one, or integers and scales."""
    if slot.quant is None:
        wanted = slot.dtype or dtype
        return [_Output(slot.name, CODES[wanted], slot.shape, _entry(slot, wanted, slot.shape))]
    stored = slot.shape
    code = CODES.get(slot.quant.dtype, "U8")
    if slot.quant.dtype is DType.I4:
        *rows, columns = slot.shape
        if columns % 2:
            raise WeightError(
                f"{slot.name}: {columns} columns do not pack two int4 to a byte; leave it"
                " unquantized or use int8"
            )
        stored = (*rows, columns // 2)
    scales = scale_shape(slot.shape, slot.quant)
    kind = slot.quant.scale
    return [
        _Output(slot.name, code, stored, _entry(slot, slot.quant.dtype, slot.shape)),
        _Output(scale_name(slot.name), CODES[kind], scales, _entry(slot, kind, scales)),
    ]


def _entry(slot: BoundSlot, dtype: DType, shape: tuple[int, ...]) -> dict[str, Any]:
    parts = {part.name: part.shape[slot.axis] for part in slot.parts}
    if len(parts) == 1:
        parts = {name: shape[slot.axis] for name in parts}
    return {"dtype": str(dtype), "shape": shape, "axis": slot.axis, "parts": parts, "sources": {}}


def _referenced_entry(slot: BoundSlot) -> dict[str, Any]:
    tensors = _tensors(slot)
    first = next(iter(tensors.values()))
    assert first.graph_dtype is not None
    entry = _entry(slot, first.graph_dtype, slot.shape)
    entry["sources"] = {part: (_file(t).path.name, t.name) for part, t in tensors.items()}
    return entry


def _header(outputs: list[_Output], referenced: Mapping[str, Any]) -> bytes:
    """The data file's first bytes; gives every output its offset.

    Arrays of a multiple of 64 bytes come first, so that each begins at one.
    """
    at = 0
    tensors = {}
    for output in sorted(outputs, key=lambda o: o.nbytes % ALIGNMENT != 0):
        output.offset = at
        at += output.nbytes
        tensors[output.name] = {
            "dtype": output.code,
            "shape": output.shape,
            "data_offsets": (output.offset, at),
        }
    slots = {**{output.name: output.entry for output in outputs}, **referenced}
    metadata = {"format": "paddock", SLOTS_KEY: json.dumps(slots, separators=(",", ":"))}
    text = json.dumps({"__metadata__": metadata, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    for output in outputs:
        output.offset += 8 + len(text)
    return len(text).to_bytes(8, "little") + text


def _make(
    slot: BoundSlot,
    outputs: list[_Output],
    fd: int,
    dtype: DType,
    int4_steps: tuple[float, ...],
    result: _Result,
    work: Work,
) -> None:
    """Read, convert and write one slot, some rows at a time."""
    hashes = [hashlib.sha256() for _ in outputs]
    written = [output.offset for output in outputs]
    rows = slot.shape[0]
    row_bytes = _source_bytes(slot) // max(rows, 1)
    for start, end in _chunks(slot.shape):
        values = slot.rows(start, end)
        if slot.quant is None:
            values = np.ascontiguousarray(cast(values, slot.dtype or dtype))
            finite = is_finite(values)
            arrays = [values]
        else:
            values = np.ascontiguousarray(cast(values, DType.F32))
            finite = is_finite(values)
            rows_of_all = values.reshape(-1, values.shape[-1])  # experts' one after the other
            integers, scales = quantize_rows(rows_of_all, slot.quant, steps=int4_steps)
            packed = pack_int4(integers) if slot.quant.dtype is DType.I4 else integers
            arrays = [packed, scales]
        for i, array in enumerate(arrays):
            data = _bytes(array)
            hashes[i].update(data)
            _write_all(fd, data, written[i])
            written[i] += len(data)
        if not finite:
            result.nonfinite.add(slot.name)
        work.advance((end - start) * row_bytes)
    for output, digest in zip(outputs, hashes, strict=True):
        result.digests[output.name] = digest.hexdigest()
    for part in slot.parts:
        for tensor, _ in part.source.boxes(part.box):
            if tensor.file is not None:
                tensor.file.release(tensor.name)


def _check_referenced(slot: BoundSlot, result: _Result, work: Work) -> None:
    """Hash the tensors that a slot refers to, and look for values that are not finite."""
    for part, tensor in _tensors(slot).items():
        file = _file(tensor)
        digest = hashlib.sha256()
        view = file.view(tensor.name)
        for start, end in _chunks(tensor.shape):
            rows = view[start:end]
            digest.update(_bytes(rows))
            if not is_finite(rows):
                result.nonfinite.add(slot.name)
            work.advance(rows.nbytes)
        result.digests[f"{slot.name}#{part}"] = digest.hexdigest()
        file.release(tensor.name)


def _bytes(array: Array) -> memoryview:
    """The elements of a contiguous array, in place."""
    return array.reshape(-1).view(np.uint8).data


def is_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite."""
    if array.dtype == DType.BF16.numpy:  # an exponent of ones; NumPy has no ufunc of its own here
        return not array.size or int((array.view(np.uint16) & 0x7FFF).max()) < 0x7F80
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    rows = max(1, CHUNK // max(prod(shape[1:]), 1))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


def _source_bytes(slot: BoundSlot) -> int:
    """What is read of the checkpoint for a slot."""
    return sum(
        prod(stop - start for start, stop in box) * tensor.nbytes // max(prod(tensor.shape), 1)
        for part in slot.parts
        for tensor, box in part.source.boxes(part.box)
    )


def _content(header: bytes, digests: Mapping[str, str]) -> str:
    """The header holds names, types and shapes; the digests stand for the data."""
    content = hashlib.sha256(header)
    content.update(json.dumps(digests).encode())
    return content.hexdigest()


def _references(slots: Mapping[str, BoundSlot], digests: Mapping[str, str]) -> dict[str, Any]:
    """Of each file of the checkpoint that is referred to: where it is, and how to know it."""
    files: dict[str, Any] = {}
    for name, slot in slots.items():
        for part, tensor in _tensors(slot).items():
            file = _file(tensor)
            if file.path.name not in files:
                files[file.path.name] = {
                    "path": str(file.path.absolute()),
                    "mtime_ns": file.path.stat().st_mtime_ns,
                    "header_sha256": hashlib.sha256(file.header).hexdigest(),
                    "tensors": {},
                }
            files[file.path.name]["tensors"][tensor.name] = digests[f"{name}#{part}"]
    return files


def _file(tensor: TensorInfo) -> SafetensorsFile:
    assert tensor.file is not None
    return tensor.file


@contextmanager
def _published(folder: Path, name: str, size: int) -> Iterator[int]:
    """A file descriptor for `size` bytes that become the file `name` when all went well.

    Otherwise nothing is left. Errors of the disk become `WeightError`s.
    """
    try:
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(fd, 0, size)  # a full disk shows now, not after the work
            yield fd
            os.fchmod(fd, 0o644)
            os.fsync(fd)
            os.replace(temporary, folder / name)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        _sync_folder(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = (
            f"no room for {size / 1e9:.2f} GB ({error.strerror});"
            " make room, or keep the build elsewhere"
            if full
            else str(error)
        )
        raise WeightError(f"{folder / name}: cannot be written: {reason}") from error


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
