"""A device on the host: every instruction by its NumPy definition, over the engine's own memory.

What it shares with the GPU is all that is not a kernel: fusion, the memory plan, padding, what is
captured and in which order. What it cannot show is what a kernel computes: tests marked `gpu` do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from paddock.engines.cuda.device import Instruction, StoredWeight
from paddock.engines.cuda.nccl import Place
from paddock.graph import Array, DType
from paddock.graph.ops import Collective, Communicator, Dequantize
from paddock.graph.tensor import SEQUENCES, STARTS, Dim
from paddock.weights.quantize import unpack_int4


class Mark:
    def __init__(self, device: HostDevice) -> None:
        self._device, self._enqueued = device, len(device.queue)

    def synchronize(self) -> None:
        self._device.catch_up(self._enqueued)


class HostDevice:
    """Work is put off until somebody waits for it, as late as a GPU may be."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.done = 0
        self.log: list[str] = []
        self.captures = 0
        self.bytes = 1 << 30
        self.allocated = 0
        self.max_blocks = 2
        self.communicator: Communicator | None = None
        self.eager = False

    def join(self, place: Place, communicator: Communicator) -> None:
        self.communicator = communicator
        self.eager = place.sends  # nobody waits for a stage that is not the last

    def memory(self, fraction: float) -> tuple[int, int]:
        return int(self.bytes * fraction) - self.allocated, int(self.bytes * fraction)

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        made = np.zeros(tuple(shape), dtype)
        if self.allocated + made.nbytes > self.bytes:
            raise MemoryError(f"{made.nbytes} bytes")
        return made

    def arrived(self) -> None:
        """Uploads are done at once."""

    def upload(self, array: Array, out: Array | None = None, *, wait: bool = True) -> Array:
        if out is None:
            return np.array(array)
        out[...] = array
        return out

    def dense(self, stored: StoredWeight) -> Array:
        if stored.kind == "f8":
            values = stored.values.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
            weight: Array = values * stored.scales[:, None]
            return weight.astype(stored.dtype.numpy)
        values = unpack_int4(stored.values) if stored.kind == "i4" else stored.values
        return Dequantize(stored.dtype).compute(values, stored.scales)

    def fp8(self, weight: Array, dtype: DType) -> StoredWeight:
        wide = weight.astype(np.float32)
        scales = np.maximum(np.abs(wide).max(1), 1e-12) / np.float32(448)
        values = (wide / scales[:, None]).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return StoredWeight("f8", values, scales, dtype, weight.shape)

    def pinned(self, nbytes: int) -> Array:
        return np.full(nbytes, 0xFF, np.uint8)

    def write(self, target: Array, source: Array) -> None:
        def copy() -> None:
            target.reshape(-1).view(np.uint8)[: source.nbytes] = source

        self.queue.append(copy)
        self.log.append("write")

    def read(self, target: Array, source: Array) -> None:
        def copy() -> None:
            target[:] = np.ascontiguousarray(source).reshape(-1).view(np.uint8)

        self.queue.append(copy)
        self.log.append("read")

    def mark(self) -> Mark:
        return Mark(self)

    def catch_up(self, until: int) -> None:
        while self.done < until:
            self.queue[self.done]()
            self.queue[self.done] = lambda: None
            self.done += 1

    def cache(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.zeros(shape, dtype)

    def execute(self, instructions: Sequence[Instruction]) -> None:
        self.log.append("execute")
        self.queue.append(lambda: self._run(instructions))
        if self.eager:
            self.catch_up(len(self.queue))

    def capture(self, instructions: Sequence[Instruction]) -> Callable[[], None]:
        self.captures += 1
        self.log.append("capture")
        kept = list(instructions)

        def launch() -> None:
            self.log.append("launch")
            self.queue.append(lambda: self._run(kept))
            if self.eager:
                self.catch_up(len(self.queue))

        return launch

    def close(self) -> None:
        self.catch_up(len(self.queue))

    def _run(self, instructions: Sequence[Instruction]) -> None:
        for one in instructions:
            inputs = [self.dense(x) if isinstance(x, StoredWeight) else x for x in one.inputs]
            inputs = _without_padding(one, inputs)
            for out in one.outputs:  # a kernel may write before it has read all: nothing overlaps
                if not any(out is x for x in one.inputs):
                    out.reshape(-1).view(np.uint8)[:] = 0xFF
            with np.errstate(all="ignore"):  # padding holds what the memory held before
                if isinstance(one.op, Collective):
                    assert self.communicator is not None
                    made: Any = one.op.exchange(self.communicator, *inputs)
                else:
                    made = one.op.compute(*inputs)
            made = made if isinstance(made, tuple) else (made,)
            for room in one.scratch:  # what is still needed must not lie here
                room.reshape(-1).view(np.uint8)[:] = 0xFF
            for out, value in zip(one.outputs, made, strict=True):
                out[...] = value


def _without_padding(one: Instruction, inputs: list[Array]) -> list[Array]:
    """Less the sequences of no tokens, which definitions need not know."""
    starts = [x for x, t in zip(inputs, one.types, strict=False) if t.shape == (STARTS,)]
    if not starts:
        return inputs
    count = int(np.searchsorted(starts[0], starts[0][-1]))
    kept = {SEQUENCES: count, STARTS: count + 1}
    return [
        x[: kept[d]] if isinstance(d := t.shape[0], Dim) and d in kept else x
        for x, t in zip(inputs, one.types, strict=True)
    ]
