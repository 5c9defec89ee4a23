"""An opened engine: weights, cache, and a captured graph for each size of step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from paddock.engines.choosing import CHOICE_TYPES, ChooseTokens, FillIn
from paddock.engines.cuda.buckets import Bucket, Buckets
from paddock.engines.cuda.device import Device, Event, Instruction
from paddock.engines.cuda.program import Program
from paddock.engines.cuda.step_layout import StepLayout
from paddock.engines.protocol import BuildError, Choices, StepInputs
from paddock.graph import Array, DType, Graph
from paddock.graph.ops import CacheBlocks, Input, Send, StateSlots
from paddock.graph.tensor import ROWS, TOKENS, TensorType, fixed

BLOCK_SIZE = 64
CAPTURED_TOKENS = 1024  # of a mixed step; larger ones hide the host's work behind the GPU's
SLOTS = 4096
MAX_ROWS = 1 << 16  # of logits in a step
IN_FLIGHT = 2
MAX_SEQUENCES, MAX_TOKENS = 1024, 8192  # of a step
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass
class _Bound:
    """A bucket's instructions over their arrays, and how they are started."""

    layout: StepLayout
    instructions: list[Instruction]
    logits: Any
    runs: int = 0
    launch: Callable[[], None] | None = None


@dataclass
class _Flight:
    """A step that was enqueued, and where its result will be."""

    event: Event
    buffer: Array
    rows: int


class CUDASession:
    """Implements `paddock.engines.protocol.Session`. `options`: `block_size`, tokens in a block.

    Work goes to the device in order, and nothing waits for it but `chosen` and `run`: a step may
    be launched while the one before runs, and read from the device what that one chose.
    """

    def __init__(
        self,
        graph: Graph,
        constants: Mapping[Any, Any],
        options: Mapping[str, Any],
        device: Device,
    ) -> None:
        self.device = device
        self.block_size = int(options.get("block_size") or BLOCK_SIZE)
        self.vocab_size = graph.outputs[0].type.size(-1)
        self._is_last = next(graph.find(Send), None) is None
        self._program = Program(graph, constants)
        self._caches = [op for n in graph.find(CacheBlocks) if isinstance(op := n.op, CacheBlocks)]
        self._cache_type = E4M3 if options.get("cache_dtype") == "fp8" else None
        self.block_bytes = sum(
            self.block_size * prod(fixed(op.shape[2:])) * self._type_of(op).itemsize
            for op in self._caches
        )
        self._states = [op for n in graph.find(StateSlots) if isinstance(op := n.op, StateSlots)]
        self.state_bytes = sum(
            prod(fixed(op.shape[1:])) * op.dtype.numpy.itemsize for op in self._states
        )
        self.max_sequences, self.max_tokens_per_step = MAX_SEQUENCES, MAX_TOKENS
        self._fraction = float(options.get("memory_fraction") or 1.0)
        self._inputs = [op for n in self._program.inputs if isinstance(op := n.op, Input)]
        self._buckets = Buckets(MAX_SEQUENCES, 1 << 20)
        self._bound: dict[Bucket, _Bound] = {}
        self._table = 4096
        self._cache: dict[str, Any] = {}
        self._arena = device.zeros((1 << 20,), np.dtype(np.uint8))
        self._staging = device.zeros((1 << 16,), np.dtype(np.uint8))
        self._last_tokens = device.zeros((SLOTS,), np.dtype(np.int32))
        self._tokens = device.zeros((MAX_ROWS,), np.dtype(np.int32))
        # One more than steps in flight: a buffer is written again only after its copy was made.
        self._host: deque[tuple[Array, Event | None]] = deque(
            (device.pinned(self._staging.nbytes), None) for _ in range(IN_FLIGHT + 1)
        )
        self._flights: deque[_Flight] = deque()
        self._free_results: dict[int, list[Array]] = {}

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        self._finish_all()
        self._cache.clear()
        self._bound.clear()
        for op in self._caches:
            shape = (blocks, self.block_size, *fixed(op.shape[2:]))
            self._cache[op.key] = self.device.cache(shape, self._type_of(op))
        for state in self._states:
            shape = (slots, *fixed(state.shape[1:]))
            self._cache[state.key] = self.device.zeros(shape, state.dtype.numpy)

    def _type_of(self, cache: CacheBlocks) -> np.dtype[Any]:
        """Of keys and values as they are kept."""
        return cache.dtype.numpy if self._cache_type is None else self._cache_type

    @property
    def gpu_memory(self) -> tuple[int, int]:
        """Bytes that this engine may still take, and all that it may ever have."""
        return self.device.memory(self._fraction)

    @property
    def step_bytes(self) -> int:
        """What the largest step needs beside weights and cache."""
        largest = Bucket(MAX_TOKENS, MAX_SEQUENCES, MAX_SEQUENCES, 0, 1, MAX_TOKENS)
        many = MAX_SEQUENCES
        decode = Bucket(many, many, many, many, 0, 1)
        return max(self._program.arena_bytes(b, self._table) for b in (largest, decode))

    @property
    def steps_in_flight(self) -> int:
        """How many launched steps may wait to be collected."""
        return IN_FLIGHT

    def run(self, step: StepInputs) -> Array:
        """f32 logits [R, vocab_size]; valid until the next call.

        A pipeline stage that is not the last has none, and does not wait for the step to end.
        """
        self._finish_all()
        choices = Choices.greedy(np.full(len(step.logit_rows), -1, np.int32))
        bound = self._enqueue(step, choices)
        if not self._is_last:
            return np.zeros((0, self.vocab_size), np.float32)
        rows = len(step.logit_rows)
        nbytes = bound.logits.nbytes
        result = self._result(nbytes)
        self.device.read(result[:nbytes], bound.logits)
        self.device.mark().synchronize()
        self._free_results.setdefault(result.nbytes, []).append(result)
        logits: Array = result[:nbytes].view(np.float32).reshape(-1, self.vocab_size)[:rows]
        return logits

    def choose(self, step: StepInputs, choices: Choices) -> None:
        """Enqueue a step whose tokens are chosen on the device; `chosen` gives them, in order.

        A token id of -1 - slot stands for the token that was chosen last under that slot.
        """
        if len(self._flights) >= IN_FLIGHT:
            raise BuildError(f"{IN_FLIGHT} steps are on the way: ask what was chosen first")
        rows = len(step.logit_rows)
        self._enqueue(step, choices)
        result = self._result(4 * rows)
        self.device.read(result[: 4 * rows], self._tokens[:rows])
        self._flights.append(_Flight(self.device.mark(), result, rows))

    def chosen(self) -> Array:
        """Tokens i32 [R] of the oldest launched step; -1 where its logits are no numbers."""
        flight = self._flights.popleft()
        flight.event.synchronize()
        tokens: Array = flight.buffer[: 4 * flight.rows].view(np.int32).copy()
        self._free_results.setdefault(flight.buffer.nbytes, []).append(flight.buffer)
        return tokens

    def close(self) -> None:
        self._finish_all()
        self._bound.clear()
        self._cache.clear()
        self._program = Program(Graph(), {})
        self._arena = self._staging = None
        self.device.close()

    # --- steps --------------------------------------------------------------------------------

    def _enqueue(self, step: StepInputs, choices: Choices) -> _Bound:
        sources = (0, 0)
        if step.source_table is not None:
            heard = step.source_ids if step.source_features is None else step.source_features
            sources = (0 if heard is None else len(heard), len(step.source_table))
        images = (0, 0)
        if step.image_patches is not None and step.image_starts is not None:
            images = (len(step.image_patches), len(step.image_starts) - 1)
        bucket = self._buckets.bucket(step.sequence_starts, len(step.logit_rows), sources, images)
        longest = int(np.diff(step.block_starts).max())
        if longest > self.device.max_blocks:
            self._forget()
            self.device.max_blocks = 1 << (longest - 1).bit_length()
        bound = self._bind(bucket, len(step.block_table))
        host, event = self._host.popleft()
        if event is not None:
            event.synchronize()
        if host.nbytes < bound.layout.nbytes:
            host = self.device.pinned(self._staging.nbytes)
        used = bound.layout.pack(host, step, choices)
        self.device.write(self._staging, host[:used])
        self._host.append((host, self.device.mark()))
        if bound.launch is not None:
            bound.launch()
        else:
            captured = bucket.decodes or bucket.tokens <= CAPTURED_TOKENS
            if bound.runs and captured:
                bound.launch = self.device.capture(bound.instructions)
                bound.launch()
            else:  # the first run compiles kernels and times algorithms, which a capture cannot
                self.device.execute(bound.instructions)
        bound.runs += 1
        return bound

    def _bind(self, bucket: Bucket, table: int) -> _Bound:
        """The bucket's instructions, made when it comes first or memory had to grow."""
        if table > self._table:
            self._table = 1 << (table - 1).bit_length()
            self._forget()
        if bucket in self._bound:
            return self._bound[bucket]
        layout = StepLayout(self._inputs, bucket, self._table)
        needed = self._program.arena_bytes(bucket, self._table)
        if needed > self._arena.nbytes or layout.nbytes > self._staging.nbytes:
            self._forget()
            if needed > self._arena.nbytes:
                self._arena = None
                self._arena = self.device.zeros((needed,), np.dtype(np.uint8))
            if layout.nbytes > self._staging.nbytes:
                room = 1 << (layout.nbytes - 1).bit_length()
                self._staging = self.device.zeros((room,), np.dtype(np.uint8))
        step = layout.views(self._staging)
        instructions, logits = self._program.bind(
            bucket, self._table, step, self._cache, self._arena
        )
        bound = _Bound(layout, [*self._filled_in(step), *instructions], logits)
        if self._is_last:
            bound.instructions.append(self._chosen_from(logits, step, bucket))
        self._bound[bucket] = bound
        return bound

    def _filled_in(self, step: Mapping[str, Any]) -> list[Instruction]:
        """Tokens that the host does not know yet; a later pipeline stage is given none."""
        if "token_ids" not in step:
            return []
        types = (TensorType(DType.I64, (TOKENS,)), TensorType(DType.I32, (ROWS,)))
        ids = step["token_ids"]
        return [Instruction(FillIn(), types, [ids, self._last_tokens], [ids], name="fill in")]

    def _chosen_from(self, logits: Any, step: Mapping[str, Any], bucket: Bucket) -> Instruction:
        return Instruction(
            ChooseTokens(),
            (),
            [logits, *(step[name] for name in CHOICE_TYPES), self._last_tokens],
            [self._tokens[: bucket.rows], self._last_tokens],
            name="choose",
        )

    def _forget(self) -> None:
        """Before memory moves: captured graphs know addresses."""
        self.device.mark().synchronize()
        self._bound.clear()

    def _result(self, nbytes: int) -> Array:
        """Host memory for a result, used again when it was read."""
        room = max(4 * 1024, 1 << (nbytes - 1).bit_length())
        kept = self._free_results.get(room)
        return kept.pop() if kept else self.device.pinned(room)

    def _finish_all(self) -> None:
        while self._flights:
            self.chosen()
