"""What goes between processes: frames over a socket, and a step as one run of bytes.

Layouts are fixed and hold numbers, arrays and JSON: nothing in them is ever run or unpickled.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, fields
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np

from paddock.engines.protocol import Choices, StepInputs
from paddock.graph import Array, PaddockError

MAGIC = 0x504B4431
HEADER = struct.Struct("<IIQ")  # magic, kind, bytes that follow
LONGEST = 1 << 40  # bytes of a frame: more is no frame of ours
ALIGNMENT = 8

_DTYPES = [np.dtype(t) for t in ("i4", "i8", "f4", "u1", "i1", "f8", "?", "u4")]
_FIELDS = tuple(field.name for field in fields(StepInputs))
_CHOICES = tuple(field.name for field in fields(Choices))
_AXES = 2
_ABSENT = -1  # in the place of a dtype: the step has no such array
_NONE = np.zeros(0, np.int32)
_ENTRY = 2 + _AXES  # dtype, number of axes, their sizes
_PREFIX = 8 * (1 + _ENTRY * len(_FIELDS))


class WireError(PaddockError):
    """What arrived is not what was agreed, or nothing arrives any more."""


class Kind(IntEnum):
    """What a frame says."""

    HELLO = 1  # rank -> front: JSON, who I am
    JOB = 2  # front -> rank: JSON, what to open
    READY = 3  # rank -> front: JSON, it is open
    ALLOCATE = 4  # front -> ranks: JSON, the arguments of `allocate_cache`
    ALLOCATED = 5  # rank -> front
    STEP = 6  # front -> ranks: `pack_step`
    LOGITS = 7  # rank -> front: `pack_array`
    PULSE = 8  # rank -> front: `PULSE`
    FAILED = 9  # rank -> front: JSON, what went wrong
    CLOSE = 10  # front -> ranks
    CHOOSE = 11  # front -> ranks: `pack_choice`
    CHOSEN = 12  # rank -> front: i32 tokens


PULSE = struct.Struct("<QQQ")  # steps begun, steps ended, whether it waits for other ranks


@dataclass(frozen=True)
class Frame:
    kind: Kind
    payload: bytearray

    def json(self) -> dict[str, Any]:
        """Raises `WireError`."""
        try:
            found = json.loads(self.payload.decode())
        except (ValueError, RecursionError) as error:
            raise WireError(f"a {self.kind.name} frame holds no JSON: {error}") from error
        if not isinstance(found, dict):
            raise WireError(f"a {self.kind.name} frame holds no object")
        return found


class Channel:
    """Frames over a connected stream socket; any thread may send, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._sending, self._ending = threading.Lock(), threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(connection)

    def send(self, kind: Kind, *payload: bytes | bytearray | memoryview) -> None:
        """Raises `OSError` where the other side is gone."""
        views = [memoryview(p).cast("B") for p in payload]
        header = HEADER.pack(MAGIC, kind, sum(map(len, views)))
        with self._sending:
            self.socket.sendall(header)
            for view in views:
                self.socket.sendall(view)

    def send_json(self, kind: Kind, content: dict[str, Any]) -> None:
        self.send(kind, json.dumps(content).encode())

    def receive(self, longest: int = LONGEST) -> Frame | None:
        """The next frame; None where the other side has ended. Raises `WireError`, `OSError`."""
        header = self._exactly(HEADER.size)
        if header is None:
            return None
        magic, kind, size = HEADER.unpack(header)
        if magic != MAGIC or size > longest or kind not in Kind._value2member_map_:
            raise WireError("what arrived is no frame of Paddock's ranks")
        payload = self._exactly(size)
        return None if payload is None else Frame(Kind(kind), payload)

    def end(self) -> None:
        """Wake whoever sends or receives; nothing passes any more."""
        with self._ending, contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def expect(self, within_s: float) -> None:
        """Give the other side up where nothing that was sent is taken for as long (Linux)."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(within_s * 1000)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def close(self) -> None:
        """By whoever receives: a closed descriptor's number is soon another's."""
        self.end()
        with self._sending, self._ending:
            self.socket.close()

    def _exactly(self, size: int) -> bytearray | None:
        buffer = bytearray(size)
        view, done = memoryview(buffer), 0
        while done < size:
            try:
                count = self.socket.recv_into(view[done:])
            except ConnectionResetError:
                return None
            if not count:
                return None
            done += count
        return buffer


def pack_step(step: StepInputs, number: int) -> bytearray:
    """The step's number, then dtype, axes and sizes of every array, then the arrays."""
    arrays = [_NONE if (a := getattr(step, name)) is None else a for name in _FIELDS]
    arrays = [np.ascontiguousarray(array) for array in arrays]
    prefix = np.zeros(_PREFIX // 8, np.int64)
    prefix[0] = number
    size = _PREFIX
    for i, array in enumerate(arrays):
        entry = prefix[1 + i * _ENTRY :]
        entry[0] = _ABSENT if getattr(step, _FIELDS[i]) is None else _DTYPES.index(array.dtype)
        entry[1] = array.ndim
        entry[2 : 2 + array.ndim] = array.shape
        size += _padded(array.nbytes)
    packed = bytearray(size)
    packed[:_PREFIX] = prefix.tobytes()
    at = _PREFIX
    for array in arrays:
        packed[at : at + array.nbytes] = array.reshape(-1).view(np.uint8).data
        at += _padded(array.nbytes)
    return packed


def unpack_step(packed: bytearray | memoryview) -> tuple[int, StepInputs]:
    """The step's number, and its arrays as views of `packed`. Raises `WireError`."""
    view = memoryview(packed)
    try:
        prefix = np.frombuffer(view, np.int64, _PREFIX // 8)
        arrays: dict[str, Any] = {}
        at = _PREFIX
        for i, name in enumerate(_FIELDS):
            code, axes, *sizes = (int(n) for n in prefix[1 + i * _ENTRY : 1 + (i + 1) * _ENTRY])
            if code == _ABSENT:
                arrays[name] = None
                continue
            shape = tuple(sizes[:axes])
            kind, count = _DTYPES[code], prod(shape)
            arrays[name] = np.frombuffer(view, kind, count, at).reshape(shape)
            at += _padded(count * kind.itemsize)
    except (IndexError, ValueError) as error:
        raise WireError(f"a step's arrays do not fit together: {error}") from error
    return int(prefix[0]), StepInputs(**arrays)


def pack_choice(step: StepInputs, choices: Choices, number: int) -> bytearray:
    """The size of what `pack_step` makes, that, and the choices as f64 [6, rows]."""
    packed = pack_step(step, number)
    table = np.array([getattr(choices, name) for name in _CHOICES], np.float64)
    return bytearray(struct.pack("<Q", len(packed))) + packed + table.tobytes()


def unpack_choice(packed: bytearray | memoryview) -> tuple[int, StepInputs, Choices]:
    """What `pack_choice` was given. Raises `WireError`."""
    view = memoryview(packed)
    try:
        (size,) = struct.unpack_from("<Q", view)
        if len(view) < 8 + size:
            raise ValueError(f"{len(view) - 8} bytes are no step of {size}")
        number, step = unpack_step(view[8 : 8 + size])
        table = np.frombuffer(view[8 + size :], np.float64).reshape(len(_CHOICES), -1)
    except (struct.error, ValueError) as error:
        raise WireError(f"a step's choices do not fit together: {error}") from error
    if table.shape[1] != len(step.logit_rows):
        raise WireError(f"{table.shape[1]} choices are not for {len(step.logit_rows)} rows")
    kinds = Choices.greedy(np.zeros(0, np.int32))
    arrays = (
        row.astype(getattr(kinds, name).dtype) for name, row in zip(_CHOICES, table, strict=True)
    )
    return number, step, Choices(*arrays)


def pack_array(array: Array) -> tuple[bytes, memoryview]:
    """f32 [rows, columns] as a head and its data in place."""
    array = np.ascontiguousarray(array, np.float32)
    rows, columns = array.shape
    return struct.pack("<QQ", rows, columns), array.reshape(-1).view(np.uint8).data


def unpack_array(payload: bytearray) -> Array:
    """What `pack_array` made; a view of the payload."""
    rows, columns = struct.unpack_from("<QQ", payload)
    if len(payload) != 16 + 4 * rows * columns:
        raise WireError(f"{len(payload)} bytes are no array of {rows} x {columns}")
    return np.frombuffer(payload, np.float32, offset=16).reshape(rows, columns)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _keep_alive(connection: socket.socket) -> None:
    """A host that vanishes is noticed within half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
