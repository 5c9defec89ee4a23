"""NCCL between the GPUs of tensor-parallel ranks: calls that go into a stream, captured or not."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import numpy as np

from paddock.engines.protocol import BuildError
from paddock.graph import Array
from paddock.graph.ops import Communicator

ID_BYTES = 128
# ncclDataType_t of nccl.h, by NumPy's and ml_dtypes' names.
_TYPES = {"int8": 0, "uint8": 1, "int32": 2, "int64": 4, "float16": 6, "float32": 7, "bfloat16": 9}
_SUM = 0


class Ranks(Protocol):
    """What collectives of a step are enqueued through. Arrays are contiguous, on the device."""

    def all_reduce(self, x: Any, y: Any) -> None:
        """y becomes the sum of the ranks' x; both may be one array."""

    def all_gather(self, x: Any, y: Any) -> None:
        """y [ranks, *x.shape] becomes all ranks' x."""

    def reduce_scatter(self, x: Any, y: Any) -> None:
        """y becomes row `rank` of the sum of the ranks' x [ranks, *y.shape]."""

    def broadcast(self, x: Any, y: Any) -> None:
        """y becomes the first rank's x."""


class NcclRanks:
    """An NCCL communicator over CuPy. Every call is enqueued in `stream`."""

    def __init__(self, stream: Any, ranks: int, communicator: Communicator) -> None:
        """Called by all ranks together, each with its own GPU current.

        `communicator` tells the others the first rank's id, and is not asked again. Raises
        `BuildError` where CuPy finds no NCCL.
        """
        try:
            nccl = import_module("cupy_backends.cuda.libs.nccl")
        except ImportError as error:
            raise BuildError(
                f"several ranks on GPUs need NCCL, which CuPy does not load ({error}); pip install"
                " nvidia-nccl-cu13 (of CuPy's CUDA version)"
            ) from error
        told: Array = communicator.broadcast(np.frombuffer(nccl.get_unique_id(), np.uint8))
        unique = told.tobytes()
        if len(unique) != ID_BYTES:
            raise BuildError(f"an NCCL id has {ID_BYTES} bytes, {len(unique)} came")
        place = communicator.all_gather(np.zeros(1, np.int32)).size
        if place != ranks:
            raise BuildError(f"the graph is of {ranks} tensor-parallel ranks, {place} have come")
        rank = int(communicator.reduce_scatter(np.arange(ranks, dtype=np.float32)).item()) // ranks
        self._stream = stream
        self._nccl = nccl.NcclCommunicator(ranks, unique, rank)

    def all_reduce(self, x: Any, y: Any) -> None:
        self._nccl.allReduce(x.data.ptr, y.data.ptr, x.size, _type(x), _SUM, self._stream.ptr)

    def all_gather(self, x: Any, y: Any) -> None:
        self._nccl.allGather(x.data.ptr, y.data.ptr, x.size, _type(x), self._stream.ptr)

    def reduce_scatter(self, x: Any, y: Any) -> None:
        self._nccl.reduceScatter(x.data.ptr, y.data.ptr, y.size, _type(x), _SUM, self._stream.ptr)

    def broadcast(self, x: Any, y: Any) -> None:
        self._nccl.broadcast(x.data.ptr, y.data.ptr, x.size, _type(x), 0, self._stream.ptr)

    def close(self) -> None:
        """After every captured graph that has calls of it is gone: NCCL waits for these."""
        self._nccl.destroy()


def _type(x: Any) -> int:
    return _TYPES[x.dtype.name]
