"""Bound weights on disk: one safetensors file, and references to tensors of the checkpoint.

`weights.safetensors` holds, under the slots' names, what had to be made: integers and scales,
converted types, a rank's slices. Its `__metadata__` says of every slot how to read it. A slot whose
parts are checkpoint tensors byte for byte is not copied: `weights.json` says in which files these
are, and by what to know that they are still the same. The first file holds no path and no date, so
that one checkpoint and one format always make the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddock.graph import Array, DType, nearest
from paddock.weights.errors import WeightError
from paddock.weights.quantize import unpack_int4
from paddock.weights.safetensors_file import SafetensorsFile

DATA = "weights.safetensors"
MANIFEST = "weights.json"
SLOTS_KEY = "paddock.slots"  # in the data file's __metadata__
VERSION = 1


@dataclass(frozen=True)
class Location:
    """Where bytes lie: `mapping[offset : offset + nbytes]`, the mapping of the whole file."""

    path: Path
    offset: int
    nbytes: int
    mapping: mmap.mmap


@dataclass(frozen=True)
class _Entry:
    """How one name is stored: in the data file, or part by part in files of the checkpoint."""

    dtype: DType
    shape: tuple[int, ...]
    axis: int
    parts: Mapping[str, int]  # name -> size along the axis
    sources: Mapping[str, tuple[str, str]]  # part -> shard, tensor; empty where in the data file


class BoundWeights:
    """One rank's weights, memory-mapped: a `paddock.engines.protocol.WeightSource`.

    Arrays are read-only views of the mappings, and valid as long as they are kept; int4 and the
    joined parts of a slot that is stored in pieces are copies.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        data: SafetensorsFile,
        shards: Mapping[str, SafetensorsFile],
        checkpoint: Path | None = None,
    ) -> None:
        self.folder, self.manifest, self.checkpoint = folder, manifest, checkpoint
        self._data, self._shards = data, shards
        self._entries = _entries(data)

    @staticmethod
    def open(folder: str | Path, checkpoint: str | Path | None = None) -> BoundWeights:
        """Map what `write` left in the folder; headers are checked, data is not read.

        `checkpoint` is where to look for referenced files that are no longer where they were.
        Raises `WeightError` where anything is absent, damaged, or not what was bound.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder / MANIFEST)
        data = SafetensorsFile(folder / DATA)
        if hashlib.sha256(data.header).hexdigest() != manifest["header_sha256"]:
            raise WeightError(
                f"{folder / DATA}: is not the file that {MANIFEST} describes; build again"
            )
        shards = {
            name: _open_shard(name, known, Path(checkpoint) if checkpoint else None)
            for name, known in manifest["references"].items()
        }
        return BoundWeights(
            folder, manifest, data, shards, Path(checkpoint) if checkpoint else None
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Slots, and the scales of those that are quantized."""
        return tuple(self._entries)

    @property
    def content(self) -> str:
        """A hash of everything bound, whichever files hold it."""
        content: str = self.manifest["content"]
        return content

    def dtype(self, name: str) -> DType:
        """The logical type: i4 for packed integers."""
        return self._entry(name).dtype

    def whole(self, name: str) -> Array:
        """The slot's array; named parts are joined."""
        entry = self._entry(name)
        if len(entry.sources) > 1:
            return np.concatenate([self.part(name, part) for part in entry.parts], entry.axis)
        return self._logical(entry, self.stored(name))

    def part(self, name: str, part: str) -> Array:
        """One named part of a slot."""
        return self._logical(self._entry(name), self.stored(name, part))

    def stored(self, name: str, part: str = "") -> Array:
        """The bytes as they lie in the file: int4 as u8 [rows, columns / 2], low half first.

        Parts that lie in tensors of their own are joined where the whole is asked for: a copy.
        """
        entry = self._entry(name)
        if not part and len(entry.sources) > 1:
            return self.whole(name)
        if entry.sources:
            key = part or next(iter(entry.sources))
            if key not in entry.sources:
                raise self._no_part(name, part, entry)
            shard, tensor = entry.sources[key]
            return self._shards[shard].view(tensor)
        array = self._data.view(name)
        if not part:
            return array
        if part not in entry.parts:
            raise self._no_part(name, part, entry)
        before = 0
        for other, size in entry.parts.items():
            if other == part:
                break
            before += size
        index = [slice(None)] * array.ndim
        index[entry.axis] = slice(before, before + entry.parts[part])
        return array[tuple(index)]

    def location(self, name: str, part: str = "") -> Location:
        """Where a slot or a part lies on disk, for advice on its pages."""
        entry = self._entry(name)
        array = self.stored(name, part)
        if not array.flags.c_contiguous:
            raise WeightError(f"{name}: part {part!r} does not lie in one piece")
        if entry.sources:
            file = self._shards[entry.sources[part or next(iter(entry.sources))][0]]
        else:
            file = self._data
        mapping = file.map()
        start = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
        return Location(
            file.path, array.__array_interface__["data"][0] - start, array.nbytes, mapping
        )

    def verify(self) -> None:
        """Read everything and compare it with the hashes taken when it was written."""
        for name, digest in self.manifest["digests"].items():
            slot, _, part = name.partition("#")
            if hash_array(self.stored(slot, part)) != digest:
                raise WeightError(f"{self.folder}: {slot}: its data is damaged; build again")

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise WeightError(
                f"{self.folder}: holds no {name!r}{nearest(name, self._entries, count=1)};"
                " the weights were bound for another model or rank: build again"
            )
        return self._entries[name]

    def _no_part(self, name: str, part: str, entry: _Entry) -> WeightError:
        parts = ", ".join(map(repr, entry.parts)) or "no parts"
        return WeightError(f"{self.folder}: {name} has {parts}, not {part!r}: build again")

    def _logical(self, entry: _Entry, array: Array) -> Array:
        return unpack_int4(array) if entry.dtype is DType.I4 else array


def hash_array(array: Array) -> str:
    """sha256 of the elements in order, in hexadecimal."""
    contiguous = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(contiguous.data).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise WeightError(f"{path}: cannot be read: {error.strerror}; build again") from error
    except (ValueError, RecursionError) as error:
        raise WeightError(f"{path}: is damaged; build again") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else None
        raise WeightError(f"{path}: version {found!r}, this Paddock has {VERSION}; build again")
    kinds = {"header_sha256": str, "content": str, "references": dict, "digests": dict}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise WeightError(f"{path}: is damaged: it has no {key}; build again")
    return manifest


def _open_shard(name: str, known: Mapping[str, Any], checkpoint: Path | None) -> SafetensorsFile:
    """A referenced file of the checkpoint, if it still holds what was bound."""
    path = Path(known["path"])
    if not path.is_file() and checkpoint is not None:
        path = checkpoint / name
    if not path.is_file():
        raise WeightError(
            f"{path}: this file of the checkpoint was bound and is gone; put it back, or build"
            " again"
        )
    shard = SafetensorsFile(path)
    changed = f"{path}: this file of the checkpoint changed after it was bound; build again"
    if hashlib.sha256(shard.header).hexdigest() != known["header_sha256"]:
        raise WeightError(changed)
    # A copy or a new checkout has another date and the same bytes.
    if path.stat().st_mtime_ns != known["mtime_ns"]:
        for tensor, digest in known["tensors"].items():
            if hash_array(shard.view(tensor)) != digest:
                raise WeightError(changed)
            shard.release(tensor)
    return shard


def _entries(data: SafetensorsFile) -> dict[str, _Entry]:
    try:
        slots = json.loads(data.metadata[SLOTS_KEY])
        return {
            name: _Entry(
                DType(slot["dtype"]),
                tuple(slot["shape"]),
                slot["axis"],
                slot["parts"],
                {part: (shard, tensor) for part, (shard, tensor) in slot["sources"].items()},
            )
            for name, slot in slots.items()
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WeightError(f"{data.path}: its table of slots is damaged; build again") from error
