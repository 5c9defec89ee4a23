"""An opened engine: execution contexts, device buffers, and the calls of a step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from paddock.engines.padded_step import PaddedCall, PaddedPlanner
from paddock.engines.protocol import BuildError, Choices, StepInputs, WeightSource
from paddock.engines.tensorrt.attention import PRESENT
from paddock.engines.tensorrt.bounds import CONTEXT, GENERATION, PROFILES
from paddock.engines.tensorrt.choosing import PackedChoices, rows_of_calls
from paddock.engines.tensorrt.device import Buffer, Device, Event, OutOfMemory
from paddock.engines.tensorrt.lowering import NetworkInput
from paddock.engines.tensorrt.plan import Plan
from paddock.engines.tensorrt.ranks import SENT, Link
from paddock.engines.tensorrt.staging import Staging
from paddock.engines.tensorrt.states import NEXT
from paddock.engines.tensorrt.weights import nbytes, stored
from paddock.graph import Array, DType

LESS_CONTEXT = "lower limits.max_context or limits.max_sequences, and build again"
LESS_WEIGHTS = "use quant=int8 or a smaller model"
LESS_TOKENS = "lower limits.max_tokens_per_step, and build again"

IN_FLIGHT = 2

_ALIGNMENT = 256  # bytes, of what TensorRT is handed


@dataclass
class _Flight:
    """A step that was queued, and where the tokens that it chooses will be."""

    event: Event
    tokens: Array  # i32 [R], in the order in which calls choose them
    rows: Array  # i64 [R]: which rows of the step those are
    lent: list[Array]


class TensorRTSession:
    """Implements `paddock.engines.protocol.ChoosingSession` over a deserialized engine.

    `engine` is an ICudaEngine, or what stands for one; `contexts` its execution contexts, one a
    profile, which are given scratch memory for the shapes of each call.

    Work goes to the device in order, on one stream, and nothing waits for it but `chosen` and
    `run`: a step may be queued while the one before runs, and reads there what that one chose.
    """

    def __init__(
        self,
        plan: Plan,
        engine: Any,
        contexts: list[Any],
        weights: WeightSource,
        device: Device,
        link: Link | None = None,
    ) -> None:
        """`link` is to the neighbouring stages, of a plan that is one of a pipeline's."""
        self._link = link
        self._is_last = SENT not in plan.outputs
        self._is_first = all(i.kind != "received" for i in plan.inputs)
        self.plan, self._engine, self._contexts, self._device = plan, engine, contexts, device
        self.vocab_size = plan.output_width
        # Keys and values are what a sequence keeps in its slot; blocks are but counted.
        self.block_size, self.block_bytes = plan.bounds.max_context, 0
        self.max_sequences = plan.bounds.max_sequences
        self.max_tokens_per_step = plan.bounds.max_step_tokens
        self._caches_in = [i for i in plan.inputs if i.kind == "cache"]
        self._states_in = [i for i in plan.inputs if i.kind == "state"]
        kept = [*self._caches_in, *self._states_in]
        self._slot_bytes = {i.name: _nbytes(i.dtype, i.dims[1:]) for i in kept}
        self.state_bytes = sum(self._slot_bytes.values())
        self._planner = PaddedPlanner(
            plan.bounds.capacity,
            plan.bounds.max_sequences,
            plan.bounds.max_step_tokens,
            source_capacity=plan.bounds.source_capacity,
            longest_row=plan.bounds.longest_row,
            has_slots=bool(kept),
            max_images=plan.bounds.max_images,
            patches_per_row=plan.bounds.patches_per_row,
        )
        self._caches: dict[str, Buffer] = {}
        self._slots = 0
        self._grown: dict[str, Buffer] = {}
        self._last_tokens: Buffer | None = None
        self._staging = Staging(device)
        self._lent: list[Array] = []  # what is queued of this step reads and writes it
        self._flights: deque[_Flight] = deque()
        self._begun = False  # whether a call of the step was queued
        self.keeps: tuple[Any, ...] = ()  # what the engine needs alive beside itself
        for number, context in enumerate(contexts):
            if not context.set_optimization_profile_async(number, device.stream):
                raise BuildError(f"TensorRT refuses the profile {PROFILES[number]!r}")
        self._check_aliases()
        self._weights = self._upload(weights)

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        """Room for the keys and values of `slots` sequences."""
        self._finish_all()
        self._caches.clear()
        self._slots = 0
        for name, slot_bytes in self._slot_bytes.items():
            self._caches[name] = self._device.allocate(
                slot_bytes * slots, f"the cache of {slots} sequences", LESS_CONTEXT
            )
        self._last_tokens = self._device.allocate(
            4 * slots, f"the last tokens of {slots} sequences", LESS_CONTEXT
        )
        self._slots = slots

    @property
    def steps_in_flight(self) -> int:
        """How many steps may be queued whose tokens were not asked for."""
        return IN_FLIGHT

    def run(self, step: StepInputs) -> Array:
        """f32 logits [R, vocab_size]. Steps on the way are finished, and their tokens dropped.

        A pipeline stage before the last has none, and gives no rows.
        """
        self._finish_all()
        rows = len(step.logit_rows) if self._is_last else 0
        logits = np.empty((rows, self.vocab_size), np.float32)
        for call in self._calls(step):
            out = self._queue(call)
            if not self._is_last:
                self._device.synchronize()
                self._staging.give_back(self._lent)
                continue
            found = np.empty((len(call.logit_rows), self.vocab_size), np.float32)
            self._device.download(out, found)
            self._device.synchronize()
            self._staging.give_back(self._lent)
            logits[call.step_rows] = found[call.from_rows]
        return logits

    def choose(self, step: StepInputs, choices: Choices) -> None:
        """Queue a step whose tokens are chosen on the device; `chosen` gives them, in order."""
        if self._link is not None and not (self._is_last and self._is_first):
            raise BuildError("a pipeline's stages do not choose tokens: its front does")
        if len(self._flights) >= IN_FLIGHT:
            raise BuildError(f"{IN_FLIGHT} steps are on the way: ask what was chosen first")
        calls = self._calls(step)
        for call in calls:
            self._require_slots(call)
        highest = max(choices.slots.max(initial=-1), -1 - step.token_ids.min(initial=0))
        if highest >= self._slots:
            raise BuildError(f"slot {highest} is beyond the {self._slots} of the cache")
        rows = rows_of_calls(calls)
        self._begun = False
        try:
            tokens = self._queue_chosen(calls, rows, choices)
        except OutOfMemory as error:
            self._device.synchronize()
            self._staging.give_back(self._lent)
            if self._begun:  # what was chosen already, the step run again would read
                raise
            raise MemoryError(str(error)) from error
        lent, self._lent = self._lent, []
        self._flights.append(_Flight(self._device.mark(), tokens, np.concatenate(rows), lent))

    def chosen(self) -> Array:
        """Tokens i32 [R] of the oldest step on the way; -1 where its logits are no numbers."""
        flight = self._flights.popleft()
        flight.event.synchronize()
        tokens = np.empty(len(flight.rows), np.int32)
        tokens[flight.rows] = flight.tokens
        self._staging.give_back(flight.lent)
        return tokens

    def close(self) -> None:
        self._finish_all()
        self._contexts.clear()
        self._weights.clear()
        self._caches.clear()
        self._grown.clear()
        self._last_tokens = None
        self._engine = None

    def _finish_all(self) -> None:
        while self._flights:
            self.chosen()

    def _queue_chosen(self, calls: list[PaddedCall], rows: list[Array], choices: Choices) -> Array:
        """All of a step's calls; the tokens, i32 on the host, are there when they are done."""
        order = np.concatenate(rows)
        packed = PackedChoices(len(order))
        drawn, tokens = (
            self._buffer("choices", packed.nbytes),
            self._buffer("tokens", 4 * len(order)),
        )
        staged = self._stage(packed.nbytes)
        packed.write(staged, choices, order)
        self._device.upload(drawn, staged)
        at = 0
        for call, own in zip(calls, rows, strict=True):
            logits = self._queue(call)
            if len(own):
                assert self._last_tokens is not None
                self._device.choose(
                    (len(own), self.vocab_size),
                    logits,
                    self._buffer("likeliest", 8 * len(own)),
                    packed.addresses(drawn, at),
                    tokens.address + 4 * at,
                    self._last_tokens,
                )
            at += len(own)
        told = self._stage(4 * len(order))
        self._device.download(tokens, told)
        return told.view(np.int32)

    def _calls(self, step: StepInputs) -> list[PaddedCall]:
        """Raises `BuildError` for a sequence longer than the plan's: TensorRT would drop, and say
        nothing, what is written beyond a slot."""
        if self._caches_in:
            longest = int((step.past_lengths + np.diff(step.sequence_starts)).max(initial=0))
            if longest > self.plan.bounds.max_context:
                raise BuildError(
                    f"a sequence of {longest} tokens is longer than the"
                    f" {self.plan.bounds.max_context} that the plan was built for; raise"
                    " limits.max_context, and build again"
                )
        return list(self._planner.calls(step))

    def _require_slots(self, call: PaddedCall) -> None:
        rows = len(call.token_ids)
        if self._slot_bytes and call.first_slot + rows > self._slots:
            raise BuildError(
                f"slot {call.first_slot + rows - 1} is beyond the {self._slots} of the cache"
            )

    def _queue(self, call: PaddedCall) -> Buffer:
        """A call, and where its logits will be."""
        self._require_slots(call)
        rows = len(call.token_ids)
        context = self._contexts[GENERATION if call.is_generation else CONTEXT]
        for given in self.plan.inputs:
            if given.kind == "step":
                self._feed(context, given, getattr(call, given.name))
            elif given.kind == "cache":
                self._bind_cache(context, given, call.first_slot, rows)
            elif given.kind == "state":
                self._bind_state(context, given, call.first_slot, rows)
            elif given.kind == "received":
                self._receive(context, given, call.token_ids.size)
        name = "logits" if self._is_last else SENT
        kind = DType.F32 if self._is_last else self.plan.graph.outputs[0].dtype
        count = len(call.logit_rows) if self._is_last else call.token_ids.size
        out = self._buffer(name, count * self.vocab_size * kind.bits // 8)
        _taken(context.set_tensor_address(name, out.address), name)
        self._lend_scratch(context)
        if not context.execute_async_v3(self._device.stream):
            raise RuntimeError("TensorRT could not queue the step; its log says why")
        self._begun = True
        for given in self._states_in:  # a plan cannot write where it reads
            to, kept = self._slots_of(given, call.first_slot), self._grown[NEXT + given.name]
            self._device.copy(to, kept.address, rows * self._slot_bytes[given.name])
        if not self._is_last:
            assert self._link is not None
            self._link.send(out.address, count * self.vocab_size, kind)
        return out

    def _receive(self, context: Any, given: NetworkInput, tokens: int) -> None:
        """What the stage before makes of the same call."""
        assert self._link is not None
        shape = (tokens, *(d for d in given.dims[1:] if isinstance(d, int)))
        buffer = self._buffer(given.name, prod(shape) * given.dtype.bits // 8)
        self._link.receive(buffer.address, prod(shape), given.dtype)
        _taken(context.set_input_shape(given.name, shape), given.name)
        _taken(context.set_tensor_address(given.name, buffer.address), given.name)

    def _feed(self, context: Any, given: NetworkInput, values: Array) -> None:
        dtype = given.dtype.numpy
        nbytes = values.size * dtype.itemsize
        buffer = self._buffer(given.name, nbytes)
        staged = self._stage(nbytes)
        staged.view(dtype).reshape(values.shape)[...] = values
        self._device.upload(buffer, staged)
        if given.name == "token_ids" and (values < 0).any():
            assert self._last_tokens is not None
            self._device.fill_in(values.size, buffer, self._last_tokens)
        _taken(context.set_input_shape(given.name, values.shape), given.name)
        _taken(context.set_tensor_address(given.name, buffer.address), given.name)

    def _bind_cache(self, context: Any, given: NetworkInput, first: int, rows: int) -> None:
        """The slots from the first one on; what is written goes where it was read."""
        address = self._slots_of(given, first)
        _taken(context.set_input_shape(given.name, (rows, *given.dims[1:])), given.name)
        for name in (given.name, PRESENT + given.name):
            _taken(context.set_tensor_address(name, address), name)

    def _bind_state(self, context: Any, given: NetworkInput, first: int, rows: int) -> None:
        """The slots from the first one on; what they become is copied there afterwards."""
        _taken(context.set_input_shape(given.name, (rows, *given.dims[1:])), given.name)
        _taken(context.set_tensor_address(given.name, self._slots_of(given, first)), given.name)
        out = self._buffer(NEXT + given.name, rows * self._slot_bytes[given.name])
        _taken(context.set_tensor_address(NEXT + given.name, out.address), given.name)

    def _slots_of(self, given: NetworkInput, first: int) -> int:
        """The address of a slot."""
        return self._caches[given.name].address + first * self._slot_bytes[given.name]

    def _lend_scratch(self, context: Any) -> None:
        nbytes = int(context.update_device_memory_size_for_shapes())
        scratch = self._buffer("scratch", nbytes)
        context.set_device_memory(scratch.address, scratch.nbytes)

    def _buffer(self, name: str, nbytes: int) -> Buffer:
        """At least so large; a larger one replaces the last of this name."""
        held = self._grown.get(name)
        if held is None or held.nbytes < nbytes:
            # What was queued may still read the old one.
            self._device.synchronize()
            self._grown.pop(name, None)
            held = self._device.allocate(nbytes, f"a step's {name}", LESS_TOKENS)
            self._grown[name] = held
        return held

    def _stage(self, nbytes: int) -> Array:
        """Bytes of host memory that are this step's until it is done."""
        piece = self._staging.lend(nbytes)
        self._lent.append(piece)
        return piece[:nbytes]

    def _upload(self, source: WeightSource) -> dict[str, Buffer]:
        """Every weight once, for both contexts, in one allocation."""
        given = [i for i in self.plan.inputs if i.kind == "weight"]
        offsets, total = {}, 0
        for i in given:
            offsets[i.name] = total
            total += -(-nbytes(self.plan.weight(i)) // _ALIGNMENT) * _ALIGNMENT
        if not given:
            return {}
        block = self._device.allocate(total, "the weights", LESS_WEIGHTS)
        for i in given:
            array = stored(source, self.plan.weight(i))
            self._device.upload(block, array, offsets[i.name])
            self._device.synchronize()  # what was joined of parts may go
            for context in self._contexts:
                address = block.address + offsets[i.name]
                _taken(context.set_tensor_address(i.name, address), i.name)
        return {"weights": block}

    def _check_aliases(self) -> None:
        """A cache that TensorRT would copy instead of writing into is a plan of another kind."""
        for cache in self._caches_in:
            found = self._engine.get_aliased_input_tensor(PRESENT + cache.name)
            if found != cache.name:
                raise BuildError(
                    f"{cache.name}: the plan writes its cache elsewhere ({found}); build again"
                )


def _nbytes(dtype: DType, dims: tuple[int | str, ...]) -> int:
    return prod(d for d in dims if isinstance(d, int)) * dtype.bits // 8


def _taken(answer: bool, name: str) -> None:
    if not answer:
        raise BuildError(f"TensorRT does not take {name!r} as it is bound; build the engine again")
