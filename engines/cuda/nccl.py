"""Between the GPUs of ranks: NCCL's calls, which go into a stream, captured or not.

Where ranks are threads that share one GPU, as while a build is checked, the host exchanges for
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paddock.engines.protocol import BuildError
from paddock.graph import Array
from paddock.graph.ops import Communicator

if TYPE_CHECKING:
    from paddock.engines.cuda.gpu import GPU

ID_BYTES = 128
# ncclDataType_t of nccl.h, by NumPy's and ml_dtypes' names.
_TYPES = {"int8": 0, "uint8": 1, "int32": 2, "int64": 4, "float16": 6, "float32": 7, "bfloat16": 9}
_SUM = 0


@dataclass(frozen=True)
class Place:
    """What a rank's graph exchanges with other ranks."""

    shares: bool = False
    """Among tensor-parallel ranks."""
    ranks: int | None = None
    """How many those are, where the graph says it."""
    receives: bool = False
    """From the pipeline stage before."""
    sends: bool = False
    """To the next one."""

    @property
    def alone(self) -> bool:
        return not (self.shares or self.receives or self.sends)


class Ranks(Protocol):
    """What collectives of a step are enqueued through. Arrays are contiguous, on the device."""

    captures: bool
    """Whether calls may be captured in a graph."""

    def all_reduce(self, x: Any, y: Any) -> None:
        """y becomes the sum of the ranks' x; both may be one array."""

    def all_gather(self, x: Any, y: Any) -> None:
        """y [ranks, *x.shape] becomes all ranks' x."""

    def reduce_scatter(self, x: Any, y: Any) -> None:
        """y becomes row `rank` of the sum of the ranks' x [ranks, *y.shape]."""

    def broadcast(self, x: Any, y: Any) -> None:
        """y becomes the first rank's x."""

    def send(self, x: Any) -> None:
        """x to the same tensor-parallel rank of the next stage."""

    def receive(self, y: Any) -> None:
        """y becomes what the stage before sent."""

    def close(self) -> None:
        """After the last call."""


class NcclRanks:
    """NCCL communicators over CuPy. Every call is enqueued in `stream`."""

    captures = True

    def __init__(self, stream: Any, place: Place, communicator: Communicator) -> None:
        """Called by all ranks together, each with its own GPU current.

        `communicator` tells the others NCCL's ids, and is not asked again. Raises `BuildError`
        where CuPy finds no NCCL.
        """
        try:
            nccl = import_module("cupy_backends.cuda.libs.nccl")
        except ImportError as error:
            raise BuildError(
                f"several ranks on GPUs need NCCL, which CuPy does not load ({error}); pip install"
                " nvidia-nccl-cu13 (of CuPy's CUDA version)"
            ) from error
        self._stream = stream
        self._made: list[Any] = []

        def join(ranks: int, unique: bytes, rank: int) -> Any:
            if len(unique) != ID_BYTES:
                raise BuildError(f"an NCCL id has {ID_BYTES} bytes, {len(unique)} came")
            self._made.append(nccl.NcclCommunicator(ranks, unique, rank))
            return self._made[-1]

        own = np.frombuffer(nccl.get_unique_id(), np.uint8)
        if place.shares:
            unique = communicator.broadcast(own).tobytes()
            ranks = communicator.all_gather(np.zeros(1, np.int32)).size
            if place.ranks not in (None, ranks):
                raise BuildError(
                    f"the graph is of {place.ranks} tensor-parallel ranks, {ranks} have come"
                )
            all_numbers = np.arange(ranks, dtype=np.float32)
            rank = int(communicator.reduce_scatter(all_numbers).item()) // ranks
            self._nccl = join(ranks, unique, rank)
        # Two stages that follow each other are a pair of their own: the first says which.
        if place.receives:
            told: Array = np.empty(ID_BYTES, np.uint8)
            communicator.receive(told)
            self._before = join(2, told.tobytes(), 1)
        if place.sends:
            own = np.frombuffer(nccl.get_unique_id(), np.uint8)
            communicator.send(own)
            self._behind = join(2, own.tobytes(), 0)

    @property
    def shared_address(self) -> int:
        """The ncclComm_t of the tensor-parallel ranks."""
        return int(self._nccl.comm)

    def all_reduce(self, x: Any, y: Any) -> None:
        self._nccl.allReduce(x.data.ptr, y.data.ptr, x.size, _type(x), _SUM, self._stream.ptr)

    def all_gather(self, x: Any, y: Any) -> None:
        self._nccl.allGather(x.data.ptr, y.data.ptr, x.size, _type(x), self._stream.ptr)

    def reduce_scatter(self, x: Any, y: Any) -> None:
        self._nccl.reduceScatter(x.data.ptr, y.data.ptr, y.size, _type(x), _SUM, self._stream.ptr)

    def broadcast(self, x: Any, y: Any) -> None:
        self._nccl.broadcast(x.data.ptr, y.data.ptr, x.size, _type(x), 0, self._stream.ptr)

    def send(self, x: Any) -> None:
        self._behind.send(x.data.ptr, x.size, _type(x), 1, self._stream.ptr)

    def receive(self, y: Any) -> None:
        self._before.recv(y.data.ptr, y.size, _type(y), 0, self._stream.ptr)

    def close(self) -> None:
        """After every captured graph that has calls of it is gone: NCCL waits for these."""
        for one in self._made:
            one.destroy()
        self._made.clear()


class HostRanks:
    """The host exchanges, over the ranks' own communicator: slow, and it waits for the GPU."""

    captures = False

    def __init__(self, gpu: GPU, communicator: Communicator) -> None:
        self._gpu, self._communicator = gpu, communicator

    def all_reduce(self, x: Any, y: Any) -> None:
        self._gpu.upload(self._communicator.all_reduce(self._gpu.download(x)), y)

    def all_gather(self, x: Any, y: Any) -> None:
        joined = self._communicator.all_gather(self._gpu.download(x))
        parts = np.split(joined, y.shape[0], axis=-1)
        self._gpu.upload(np.ascontiguousarray(np.stack(parts)).reshape(y.shape), y)

    def reduce_scatter(self, x: Any, y: Any) -> None:
        joined = np.concatenate(list(self._gpu.download(x)), axis=-1)
        self._gpu.upload(self._communicator.reduce_scatter(joined), y)

    def broadcast(self, x: Any, y: Any) -> None:
        self._gpu.upload(self._communicator.broadcast(self._gpu.download(x)), y)

    def send(self, x: Any) -> None:
        self._communicator.send(self._gpu.download(x))

    def receive(self, y: Any) -> None:
        came = np.empty(y.shape, y.dtype)
        self._communicator.receive(came)
        self._gpu.upload(came, y)

    def close(self) -> None:
        pass


def _type(x: Any) -> int:
    return _TYPES[x.dtype.name]
