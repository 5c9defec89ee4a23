"""A stand-in for a GPU: TensorRT's engine and context as a session calls them, over NumPy.

`InterpretedEngine` and `InterpretedContext` have the methods of ICudaEngine and IExecutionContext
that `TensorRTSession` calls, and compute what the network says (`interpreter.py`), reading and
writing at the addresses that they are given. This is how a build is checked on a machine with no
GPU, and how the session is tested: every call is recorded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from paddock.engines.choosing import CHOICE_TYPES, ChooseTokens, FillIn
from paddock.engines.protocol import WeightSource
from paddock.engines.tensorrt.bounds import PROFILES, Bounds
from paddock.engines.tensorrt.definition import Definition
from paddock.engines.tensorrt.device import Buffer, Event, out_of_memory
from paddock.engines.tensorrt.interpreter import Collective, Interpreter
from paddock.engines.tensorrt.lowering import NetworkInput
from paddock.engines.tensorrt.plan import Plan
from paddock.engines.tensorrt.ranks import Link
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import Array

Call = tuple[str, tuple[Any, ...]]
"""A method and its arguments."""

STREAM = 7  # a handle that nothing else has


@dataclass
class HostDevice:
    """Host memory as if it were a device's; copies happen at once. `limit`: bytes there are."""

    stream: int = STREAM
    limit: int = 1 << 40
    calls: list[Call] = field(default_factory=list)
    used: int = 0

    def allocate(self, nbytes: int, what: str, remedy: str) -> Buffer:
        if self.used + nbytes > self.limit:
            raise out_of_memory(nbytes, self.free_bytes(), what, remedy)
        self.used += nbytes
        memory = np.zeros(nbytes + 256, np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        self.calls.append(("allocate", (address, nbytes)))
        return Buffer(address, nbytes, memory)

    def upload(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        assert array.flags.c_contiguous
        assert offset + array.nbytes <= buffer.nbytes
        self.calls.append(("upload", (buffer.address + offset, array.nbytes)))
        ctypes.memmove(buffer.address + offset, array.ctypes.data, array.nbytes)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self.calls.append(("copy", (to, source, nbytes)))
        ctypes.memmove(to, source, nbytes)

    def download(self, buffer: Buffer, array: Array) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= buffer.nbytes
        self.calls.append(("download", (buffer.address, array.nbytes)))
        ctypes.memmove(array.ctypes.data, buffer.address, array.nbytes)

    def pinned(self, nbytes: int) -> Array:
        return np.zeros(nbytes, np.uint8)

    def choose(
        self,
        shape: tuple[int, int],
        logits: Buffer,
        best: Buffer,
        choices: Sequence[int],
        tokens: int,
        last_tokens: Buffer,
    ) -> None:
        """By the definition that the kernels are held to."""
        assert best.nbytes >= 8 * shape[0]
        self.calls.append(("choose", (shape, logits.address, tokens, last_tokens.address)))
        drawn = [
            _array(address, shape[:1], dtype)
            for address, dtype in zip(choices, CHOICE_TYPES.values(), strict=True)
        ]
        kept = _array(last_tokens.address, (last_tokens.nbytes // 4,), np.dtype(np.int32))
        made = ChooseTokens().compute(
            _array(logits.address, shape, np.dtype(np.float32)), *drawn, kept
        )
        _array(tokens, shape[:1], np.dtype(np.int32))[:], kept[:] = made

    def fill_in(self, tokens: int, token_ids: Buffer, last_tokens: Buffer) -> None:
        self.calls.append(("fill_in", (tokens, token_ids.address, last_tokens.address)))
        ids = _array(token_ids.address, (tokens,), np.dtype(np.int64))
        kept = _array(last_tokens.address, (last_tokens.nbytes // 4,), np.dtype(np.int32))
        ids[:] = FillIn().compute(ids, kept)

    def mark(self) -> Event:
        self.calls.append(("mark", ()))
        return _Done(self.calls)

    def synchronize(self) -> None:
        self.calls.append(("synchronize", ()))

    def free_bytes(self) -> int:
        return self.limit - self.used


@dataclass(frozen=True)
class _Done:
    """A point in work that is done when it is queued."""

    calls: list[Call]

    def synchronize(self) -> None:
        self.calls.append(("wait", ()))


def _array(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """What lies at an address."""
    memory = (ctypes.c_char * (prod(shape) * dtype.itemsize)).from_address(address)
    return np.frombuffer(memoryview(memory), np.uint8).view(dtype).reshape(shape)


class InterpretedEngine:
    """Of a network that was defined; `definition` stays alive with it."""

    def __init__(self, definition: Definition, calls: list[Call]) -> None:
        network = definition.network
        self.definition, self.calls = definition, calls
        self.bounds: Bounds = definition.state.bounds
        self.inputs: dict[str, NetworkInput] = definition.state.inputs
        self.interpreter = Interpreter(network.flavour.module, network.raw, network.constants)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        """As TensorRT: of the outputs of cache updates alone."""
        for step in self.interpreter.steps:
            if step.kind == "KV_CACHE_UPDATE" and step.outputs == (name,):
                return step.inputs[0]
        return None


class InterpretedContext:
    """Checks, as TensorRT does, that all is bound and within the profile, then computes."""

    def __init__(self, engine: InterpretedEngine, collective: Collective | None = None) -> None:
        self._engine, self._collective = engine, collective
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self._record("set_optimization_profile_async", number, stream)
        self._profile = number
        return number < len(PROFILES)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._record("set_input_shape", name, shape)
        given = self._engine.inputs.get(name)
        if given is None or len(shape) != len(given.dims):
            return False
        least, _, most = self._engine.bounds.shapes(self._profile, given.dims)
        self._shapes[name] = shape
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._record("set_tensor_address", name, address)
        self._addresses[name] = address
        known = {*self._engine.inputs, *self._engine.interpreter.output_names}
        return name in known and address % 256 == 0

    def update_device_memory_size_for_shapes(self) -> int:
        self._record("update_device_memory_size_for_shapes")
        self._scratch = 256 * prod(self._shapes["positions"])
        return self._scratch

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self._record("set_device_memory", address, nbytes)
        assert nbytes >= self._scratch

    def execute_async_v3(self, stream: int) -> bool:
        self._record("execute_async_v3", stream)
        interpreter = self._engine.interpreter
        for name in (*interpreter.input_names, *interpreter.output_names):
            if name not in self._addresses:
                return False
        for name in interpreter.output_names:
            source = self._engine.get_aliased_input_tensor(name)
            if source is not None and self._addresses[name] != self._addresses[source]:
                return False  # " should alias but memory addresses differ."
        fed = {name: self._read(name) for name in interpreter.input_names}
        for name, array in interpreter.run(fed, self._collective).items():
            contiguous = np.ascontiguousarray(array)
            ctypes.memmove(self._addresses[name], contiguous.ctypes.data, contiguous.nbytes)
        return True

    def _read(self, name: str) -> Array:
        given = self._engine.inputs[name]
        shape = self._shapes.get(name) or tuple(int(d) for d in given.dims)
        kind = given.dtype.numpy
        if self._engine.interpreter.is_packed(name):
            shape, kind = (*shape[:-1], shape[-1] // 2), np.dtype(np.uint8)
        nbytes = prod(shape) * kind.itemsize
        raw = ctypes.string_at(self._addresses[name], nbytes)
        return np.frombuffer(raw, np.uint8).view(kind).reshape(shape)

    def _record(self, method: str, *arguments: Any) -> None:
        self._engine.calls.append((method, arguments))


def interpreted_session(
    plan: Plan,
    definition: Definition,
    weights: WeightSource,
    device: HostDevice | None = None,
    collective: Collective | None = None,
    link: Link | None = None,
) -> TensorRTSession:
    """A session that computes on the processor what the network says."""
    device = device or HostDevice()
    engine = InterpretedEngine(definition, device.calls)
    contexts = [InterpretedContext(engine, collective) for _ in PROFILES]
    return TensorRTSession(plan, engine, contexts, weights, device, link)
