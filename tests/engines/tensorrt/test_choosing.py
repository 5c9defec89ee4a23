"""Tokens are chosen where the logits are, and the next step reads them there.

TensorRT's objects are the doubles of `test_session_calls.py`; here the device is late as well: what
is queued happens when somebody waits for it, so that memory which was used again too early would
show. The kernels stand as their definition; `tests/engines/cuda` holds them to it on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import copy
from ctypes import c_int32, memset
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paddock.engines.cuda_plugin import HEADER
from paddock.engines.protocol import BuildError, Choices, StepInputs
from paddock.engines.tensorrt import choosing
from paddock.engines.tensorrt import session as calls_of_steps
from paddock.engines.tensorrt.bounds import PROFILES
from paddock.engines.tensorrt.device import Buffer, CupyDevice
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import HostDevice, InterpretedContext, InterpretedEngine
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.engines.tensorrt.staging import Staging
from paddock.graph import Array
from paddock.runtime.errors import RequestFailed
from paddock.runtime.outputs import RequestResult
from paddock.runtime.sampling.sampling_params import SamplingParams
from tests.engines.cuda.recorded_launches import declared
from tests.engines.nvrtc import ptx
from tests.engines.tensorrt.networks import Model, defined
from tests.engines.tensorrt.test_session_calls import SLOTS, Recorded, told
from tests.models.play import step_inputs
from tests.runtime.harness import make_limits
from tests.runtime.steps.test_ahead_stepper import results, tokens, workload


class LateDevice(HostDevice):
    """Copies and kernels are put off until somebody waits, as late as a GPU may be."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Callable[[], None]] = []

    def upload(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        self.queue.append(lambda: HostDevice.upload(self, buffer, array, offset))

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self.queue.append(lambda: HostDevice.copy(self, to, source, nbytes))

    def download(self, buffer: Buffer, array: Array) -> None:
        self.queue.append(lambda: HostDevice.download(self, buffer, array))

    def choose(self, *arguments: Any) -> None:
        self.queue.append(lambda: HostDevice.choose(self, *arguments))

    def fill_in(self, *arguments: Any) -> None:
        self.queue.append(lambda: HostDevice.fill_in(self, *arguments))

    def mark(self) -> Any:
        marked = len(self.queue)
        return SimpleNamespace(synchronize=lambda: self.catch_up(marked))

    def synchronize(self) -> None:
        self.catch_up(len(self.queue))

    def catch_up(self, until: int) -> None:
        for i in range(until):
            self.queue[i]()
            self.queue[i] = _nothing


def _nothing() -> None:
    """What was done already."""


class LateContext(InterpretedContext):
    """Takes the shapes and addresses of a call, and runs it with what else is queued."""

    def __init__(self, engine: InterpretedEngine, device: LateDevice) -> None:
        super().__init__(engine)
        self._device = device

    def execute_async_v3(self, stream: int) -> bool:
        call = copy(self)
        call._shapes, call._addresses = dict(self._shapes), dict(self._addresses)

        def run() -> None:
            assert InterpretedContext.execute_async_v3(call, stream)

        self._device.queue.append(run)
        return True


class Counting(TensorRTSession):
    """How often a step was queued while another was on its way, and how often steps waited."""

    ahead = waited = 0

    def choose(self, step: StepInputs, choices: Choices) -> None:
        self.ahead += bool(self._flights)
        super().choose(step, choices)

    def run(self, step: StepInputs) -> Array:
        self.waited += 1
        return super().run(step)


class Waiting:
    """The same session without the part that chooses: the host does."""

    def __init__(self, session: TensorRTSession) -> None:
        self.vocab_size, self.block_size = session.vocab_size, session.block_size
        self.block_bytes, self.state_bytes = session.block_bytes, session.state_bytes
        self.allocate_cache, self.run, self.close = (
            session.allocate_cache,
            session.run,
            session.close,
        )


def late(flavour: Flavour, name: str = "llama") -> Counting:
    """A session of one layer over what happens late."""
    model = Model(name, config={"num_hidden_layers": 1})
    plan, definition = defined(flavour, model.request(max_tokens_per_step=24, max_context=64))
    device = LateDevice()
    engine = InterpretedEngine(definition, device.calls)
    contexts = [LateContext(engine, device) for _ in PROFILES]
    return Counting(plan, engine, contexts, model.weights, device)


@pytest.mark.parametrize("seed", range(2))
def test_tokens_are_those_of_the_host(flavour: Flavour, seed: int) -> None:
    """By every filter, in steps of all ages, with the same seeds: none of them waits."""
    limits = make_limits(max_sequences=5, cache_blocks=40, max_tokens_per_step=24)
    asked = workload(seed, 12)
    session = late(flavour)
    found = tokens(results(session, limits, asked))
    assert found == tokens(results(Waiting(late(flavour)), limits, asked))
    assert session.ahead > 10
    assert session.waited == 0


def test_what_needs_its_logits_waits_beside_what_does_not(flavour: Flavour) -> None:
    limits = make_limits(max_sequences=5, cache_blocks=40, max_tokens_per_step=24)
    some: list[tuple[list[int], SamplingParams, int]] = []
    for plain, other in zip(workload(1, 6), workload(2, 6, repetition_penalty=1.3), strict=True):
        some += [plain, other]
    session = late(flavour)
    found: list[RequestResult] = results(session, limits, some)
    assert tokens(found) == tokens(results(Waiting(late(flavour)), limits, some))
    assert session.waited > 0


# Rows 2, 3 and 4 of the cache, of which 3 takes no part; the host does not know what 4 was given.
CHOSEN = """
upload choices 96
upload token_ids 24
fill_in 3 token_ids last_tokens
set_input_shape generation token_ids (3,1)
set_tensor_address generation token_ids token_ids
upload positions 24
set_input_shape generation positions (3,1)
set_tensor_address generation positions positions
upload logit_rows 16
set_input_shape generation logit_rows (2,)
set_tensor_address generation logit_rows logit_rows
set_input_shape generation key_cache (3,2,32,16)
set_tensor_address generation key_cache key_cache[2]
set_tensor_address generation present.key_cache key_cache[2]
set_input_shape generation value_cache (3,2,32,16)
set_tensor_address generation value_cache value_cache[2]
set_tensor_address generation present.value_cache value_cache[2]
upload write_indices 12
set_input_shape generation write_indices (3,)
set_tensor_address generation write_indices write_indices
upload key_value_lengths 12
set_input_shape generation key_value_lengths (3,)
set_tensor_address generation key_value_lengths key_value_lengths
set_tensor_address generation logits logits
update_device_memory_size_for_shapes generation
set_device_memory generation scratch 2304
execute_async_v3 generation 7
choose (2,64) logits tokens last_tokens
download tokens 8
mark
"""


def unknown(recorded: Recorded) -> StepInputs:
    """A token of slot 2, and of slot 4 the one that it was given last."""
    batch = [(np.array([3]), 3, [2]), (np.array([-1 - 4]), 3, [4])]
    return step_inputs(recorded.session, batch, np.arange(2))


def test_every_call_of_a_step_that_chooses(flavour: Flavour) -> None:
    recorded = Recorded(flavour)
    session = recorded.session
    session.allocate_cache(1, SLOTS)
    prompts = recorded.step((2, 3, 0), (3, 3, 0), (4, 3, 0), rows=[2, 8])
    session.choose(prompts, Choices.greedy(np.array([2, 4], np.int32)))
    recorded.calls()
    session.choose(unknown(recorded), Choices.greedy(np.array([2, 4], np.int32)))
    calls = recorded.calls()
    assert session._last_tokens is not None
    session._grown["last_tokens"] = session._last_tokens  # for its name
    assert told(calls, session) == CHOSEN.split("\n")[1:-1]
    session.chosen()
    assert recorded.calls() == [("wait", ())]


def test_tokens_come_in_the_order_of_the_step(flavour: Flavour) -> None:
    """Prompts and tokens in several calls, whose rows are ordered by slots, not as the step's."""
    session = late(flavour)
    batches: list[list[tuple[Array, int, list[int]]]] = [
        [(np.arange(5) + slot, 0, [slot]) for slot in (4, 0, 2)],
        [(np.array([7]), 5, [2]), (np.arange(6), 0, [5]), (np.array([9]), 5, [0])],
    ]
    wanted = []
    session.allocate_cache(1, SLOTS)
    for batch in batches:
        last = np.cumsum([len(ids) for ids, _, _ in batch]) - 1
        wanted.append(session.run(step_inputs(session, batch, last)).argmax(1))
    session.allocate_cache(1, SLOTS)
    for batch in batches:
        last = np.cumsum([len(ids) for ids, _, _ in batch]) - 1
        slots = np.array([slot for _, _, (slot,) in batch], np.int32)
        session.choose(step_inputs(session, batch, last), Choices.greedy(slots))
    assert [session.chosen().tolist() for _ in batches] == [w.tolist() for w in wanted]
    kept = wanted[1].tolist()
    assert session._last_tokens is not None
    found = (c_int32 * SLOTS).from_address(session._last_tokens.address)
    assert [found[slot] for slot in (2, 5, 0, 4)] == [*kept, wanted[0][0]]


def test_no_more_steps_on_the_way_than_two(flavour: Flavour) -> None:
    session = late(flavour)
    session.allocate_cache(1, SLOTS)
    step = step_inputs(session, [(np.arange(3), 0, [0])], np.array([2]))
    for _ in range(session.steps_in_flight):
        session.choose(step, Choices.greedy(np.array([0], np.int32)))
    with pytest.raises(BuildError, match="2 steps are on the way: ask what was chosen first"):
        session.choose(step, Choices.greedy(np.array([0], np.int32)))
    session.run(step)  # which finishes them
    session.choose(step, Choices.greedy(np.array([0], np.int32)))
    session.close()


def test_slots_that_there_are_not_are_refused_before_any_call(flavour: Flavour) -> None:
    recorded = Recorded(flavour)
    recorded.session.allocate_cache(1, 3)
    recorded.calls()
    step = recorded.step((0, 2, 0), rows=[1])
    with pytest.raises(BuildError, match="slot 3 is beyond the 3 of the cache"):
        recorded.session.choose(step, Choices.greedy(np.array([3], np.int32)))
    with pytest.raises(BuildError, match="slot 4 is beyond the 3 of the cache"):
        recorded.session.choose(
            step_inputs(recorded.session, [(np.array([-5]), 2, [0])], np.array([0])),
            Choices.greedy(np.array([0], np.int32)),
        )
    with pytest.raises(BuildError, match="slot 4 is beyond the 3 of the cache"):
        recorded.session.choose(unknown(recorded), Choices.greedy(np.array([0, 1], np.int32)))
    same = recorded.step((0, 2, 0), rows=[1, 1])
    with pytest.raises(BuildError, match=r"two rows of a step .* of the same token"):
        recorded.session.choose(same, Choices.greedy(np.array([0, 1], np.int32)))
    assert recorded.calls() == []


def test_a_step_that_does_not_fit_may_come_again(flavour: Flavour) -> None:
    """`MemoryError` where nothing was run; what was run in part cannot be run again."""
    recorded = Recorded(flavour)
    session, device = recorded.session, recorded.device
    session.allocate_cache(1, SLOTS)
    greedy = Choices.greedy(np.array([0, 2], np.int32))
    step = recorded.step((0, 4, 0), (2, 4, 0), rows=[3, 7])
    device.limit = device.used + 600
    with pytest.raises(MemoryError, match=r"no room for a step's .*limits\.max_tokens_per_step"):
        session.choose(step, greedy)
    assert "execute_async_v3" not in [method for method, _ in recorded.calls()]
    device.limit = 1 << 40
    session.choose(step, greedy)
    assert session.chosen().min() >= 0

    device.limit = device.used
    uneven = recorded.step((0, 1, 4), (2, 9, 4), rows=[0, 9])
    with pytest.raises(BuildError, match="no room for a step's"):
        session.choose(uneven, greedy)


def rows_as_they_come(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(calls_of_steps, "rows_of_calls", lambda calls: [call.step_rows for call in calls])


def tokens_stay_unknown(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HostDevice, "fill_in", lambda self, tokens, ids, last: _zero(ids))


def _zero(ids: Buffer) -> None:
    memset(ids.address, 0, ids.nbytes)


def nothing_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LateDevice, "mark", lambda self: SimpleNamespace(synchronize=_nothing))


def memory_is_lent_twice(patch: pytest.MonkeyPatch) -> None:
    lend = Staging.lend

    def again(self: Staging, nbytes: int) -> Array:
        piece = lend(self, nbytes)
        self.give_back([piece])
        return piece

    patch.setattr(Staging, "lend", again)


def first_choices_for_all(patch: pytest.MonkeyPatch) -> None:
    own = choosing.PackedChoices.addresses
    patch.setattr(
        choosing.PackedChoices, "addresses", lambda self, buffer, row: own(self, buffer, 0)
    )


@pytest.mark.parametrize(
    "plant",
    [
        rows_as_they_come,
        tokens_stay_unknown,
        nothing_is_waited_for,
        memory_is_lent_twice,
        first_choices_for_all,
    ],
)
def test_a_mistake_shows(
    flavour: Flavour,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    limits = make_limits(max_sequences=5, cache_blocks=40, max_tokens_per_step=24)
    asked = workload(0, 6)
    truth = tokens(results(Waiting(late(flavour)), limits, asked))
    plant(monkeypatch)
    try:
        found = tokens(results(late(flavour), limits, asked))
    except (RequestFailed, AssertionError):  # a step failed
        return
    assert found != truth


class FakeCupy:
    """As much of CuPy as `CupyDevice` launches kernels through; it runs nothing."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[Any, ...]]] = []
        self.code, self.options = "", ()
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking: _Stream(),
            Device=lambda: SimpleNamespace(attributes={"MultiProcessorCount": 40}),
        )

    def RawModule(self, code: str, options: Any, backend: str) -> Any:
        self.code, self.options = code, options
        return SimpleNamespace(
            get_function=lambda name: (
                lambda grid, block, arguments: self.launched.append((name, grid, block, arguments))
            )
        )


class _Stream:
    ptr = 5

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *raised: object) -> None:
        """Nothing was opened."""


def test_kernels_are_launched_as_their_source_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    """And NVIDIA's compiler takes them for every GPU that TensorRT for RTX has plans for."""
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    device = CupyDevice()
    logits, best, last = Buffer(1, 12 * 70_000, None), Buffer(2, 24, None), Buffer(3, 40, None)
    device.choose((3, 70_000), logits, best, [11, 12, 13, 14, 15, 16], 17, last)
    device.fill_in(300, Buffer(4, 2400, None), last)
    assert [(name, grid, block) for name, grid, block, _ in cupy.launched] == [
        ("likeliest", (35, 3, 1), (256, 1, 1)),
        ("choose", (3, 1, 1), (1024, 1, 1)),
        ("fill_in", (2, 1, 1), (256, 1, 1)),
    ]
    assert [arguments for *_, arguments in cupy.launched] == [
        (1, 2, 70_000),
        (1, 2, 11, 12, 13, 14, 15, 16, 17, 3, 70_000),
        (4, 3, 300),
    ]
    for name, _, _, arguments in cupy.launched:
        for (kind, pointer), given in zip(declared("sample", name), arguments, strict=True):
            assert type(given) is (int if pointer else np.int32), (name, kind)
    assert HEADER.read_text("utf-8") in cupy.code
    for architecture in ("compute_75", "compute_80", "compute_89", "compute_120"):
        assert "choose" in ptx(cupy.code, architecture, *cupy.options)
