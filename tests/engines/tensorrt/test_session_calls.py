"""What the session asks of TensorRT and of the device: every call, in order, with its arguments.

TensorRT's objects are doubles (`engines/tensorrt/interpreted.py`): they take the calls of
ICudaEngine and IExecutionContext, refuse what TensorRT refuses, and write everything down. That
the real ones do as the double does is not shown here.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from paddock.engines.protocol import BuildError, StepInputs
from paddock.engines.tensorrt.bounds import PROFILES
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import (
    STREAM,
    Call,
    HostDevice,
    InterpretedContext,
    InterpretedEngine,
)
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.engines.tensorrt.weights import nbytes
from tests.engines.tensorrt.networks import Model, defined
from tests.models.play import step_inputs

SLOTS = 6


class Numbered(InterpretedContext):
    """Says which context a call was of."""

    def __init__(self, engine: InterpretedEngine, number: int) -> None:
        super().__init__(engine)
        self._number = number

    def _record(self, method: str, *arguments: Any) -> None:
        super()._record(method, PROFILES[self._number], *arguments)


class Recorded:
    """A session of one layer, and what it called since it was last asked."""

    def __init__(self, flavour: Flavour, **options: Any) -> None:
        self.model = Model("llama", config={"num_hidden_layers": 1})
        self.plan, definition = defined(flavour, self.model.request(**options))
        self.device = HostDevice()
        self.engine = InterpretedEngine(definition, self.device.calls)
        self.contexts = [Numbered(self.engine, number) for number in range(len(PROFILES))]
        self.session = self.opened()

    def opened(self) -> TensorRTSession:
        return TensorRTSession(
            self.plan, self.engine, list(self.contexts), self.model.weights, self.device
        )

    def calls(self) -> list[Call]:
        made = list(self.device.calls)
        self.device.calls.clear()
        return made

    def run(self, *batch: tuple[int, int, int], rows: list[int] | None = None) -> list[Call]:
        """A step of (slot, tokens, tokens before them) sequences."""
        self.calls()
        step = self.step(*batch, rows=rows)
        logits = self.session.run(step)
        assert logits.shape == (len(step.logit_rows), self.session.vocab_size)
        return self.calls()

    def step(self, *batch: tuple[int, int, int], rows: list[int] | None = None) -> StepInputs:
        total = sum(tokens for _, tokens, _ in batch)
        return step_inputs(
            self.session,
            [(np.arange(tokens), past, [slot]) for slot, tokens, past in batch],
            np.arange(total) if rows is None else np.array(rows),
        )


@pytest.fixture
def recorded(flavour: Flavour) -> Recorded:
    return Recorded(flavour)


def told(calls: list[Call], session: TensorRTSession) -> list[str]:
    """Calls as text, an address as the buffer that lies there, a row of a cache as `cache[row]`."""
    names = {buffer.address: name for name, buffer in session._grown.items()}
    for name, buffer in session._caches.items():
        row = session._slot_bytes[name]
        names |= {buffer.address + s * row: f"{name}[{s}]" for s in range(SLOTS)}
    lines = []
    for method, arguments in calls:
        shown = [names.get(a, a) if isinstance(a, int) else a for a in arguments]
        line = " ".join([method, *(str(a).replace(" ", "") for a in shown)])
        lines.append(line.replace("model.layers.0.self_attn.", ""))
    return lines


# Rows 2, 3 and 4 of the cache; 3 takes no part, and writes behind all that it holds.
GENERATION = """
upload token_ids 24
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
download logits 512
synchronize
"""


def test_every_call_of_a_step(recorded: Recorded) -> None:
    recorded.session.allocate_cache(1, SLOTS)
    recorded.run((2, 3, 0), (3, 3, 0), (4, 3, 0))  # buffers are as large as they will be
    calls = recorded.run((2, 1, 3), (4, 1, 3))
    assert told(calls, recorded.session) == GENERATION.split("\n")[1:-1]


def test_single_tokens_first_and_prompts_after_them_by_their_own_context(
    recorded: Recorded,
) -> None:
    recorded.session.allocate_cache(1, SLOTS)
    calls = recorded.run((5, 4, 0), (1, 4, 0))
    assert _executed(calls) == ["context", "context"]  # too far apart for one call
    assert _shapes(calls, "token_ids") == [("context", (1, 4)), ("context", (1, 4))]
    calls = recorded.run((3, 5, 0), (1, 1, 4), (2, 5, 0), (5, 1, 4))
    assert _executed(calls) == ["generation", "context"]
    assert _shapes(calls, "token_ids") == [("generation", (5, 1)), ("context", (2, 5))]
    key = recorded.session._caches_in[0].name
    row = recorded.session._slot_bytes[key]
    base = recorded.session._caches[key].address
    assert _addresses(calls, key) == [base + 1 * row, base + 2 * row]
    assert _addresses(calls, "present." + key) == [base + 1 * row, base + 2 * row]


def test_only_the_rows_that_are_asked_for_come_back(recorded: Recorded) -> None:
    recorded.session.allocate_cache(1, SLOTS)
    calls = recorded.run((0, 6, 0), (1, 6, 0), rows=[11])
    assert _shapes(calls, "logit_rows") == [("context", (1,))]
    row = recorded.session.vocab_size * 4
    assert [a[1] for m, a in calls if m == "download"] == [row]


def test_opening_uploads_each_weight_once_for_both_contexts(recorded: Recorded) -> None:
    calls = recorded.calls()
    assert calls[:2] == [
        ("set_optimization_profile_async", ("context", 0, STREAM)),
        ("set_optimization_profile_async", ("generation", 1, STREAM)),
    ]
    (allocated,) = (arguments for method, arguments in calls if method == "allocate")
    weights = [i for i in recorded.plan.inputs if i.kind == "weight"]
    assert len(weights) == 9
    place, rest = allocated[0], calls[3:]
    for given, group in zip(
        weights, [rest[i : i + 4] for i in range(0, len(rest), 4)], strict=True
    ):
        size = nbytes(recorded.plan.weight(given))
        assert group == [
            ("upload", (place, size)),
            ("synchronize", ()),
            ("set_tensor_address", ("context", given.name, place)),
            ("set_tensor_address", ("generation", given.name, place)),
        ]
        place += -(-size // 256) * 256
    assert place == allocated[0] + allocated[1]


def test_a_buffer_is_given_back_only_after_what_reads_it_is_done(recorded: Recorded) -> None:
    recorded.session.allocate_cache(1, SLOTS)
    recorded.run((0, 2, 0))
    calls = recorded.run((0, 8, 2))
    methods = [method for method, _ in calls]
    grown = [i for i, method in enumerate(methods) if method == "allocate"]
    assert len(grown) == 5, "ids, positions, rows, logits and scratch"
    assert all(methods[i - 1] == "synchronize" for i in grown)
    assert all(i < methods.index("execute_async_v3") for i in grown)
    # A step that is no larger takes no memory.
    assert "allocate" not in [method for method, _ in recorded.run((0, 8, 10))]


def test_a_new_cache_is_bound_from_the_next_step_on(recorded: Recorded) -> None:
    session = recorded.session
    session.allocate_cache(1, SLOTS)
    recorded.run((0, 4, 0))
    sizes = {name: 3 * nbytes for name, nbytes in session._slot_bytes.items()}
    session.allocate_cache(1, 3)
    assert [a[1] for m, a in recorded.calls() if m == "allocate"] == [*sizes.values(), 4 * 3]
    calls = recorded.run((0, 4, 0))
    for name, buffer in session._caches.items():
        assert _addresses(calls, name) == _addresses(calls, "present." + name) == [buffer.address]


def _executed(calls: list[Call]) -> list[str]:
    assert all(a[1] == STREAM for m, a in calls if m == "execute_async_v3")
    return [arguments[0] for method, arguments in calls if method == "execute_async_v3"]


def _shapes(calls: list[Call], name: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(a[0], a[2]) for m, a in calls if m == "set_input_shape" and a[1] == name]


def _addresses(calls: list[Call], name: str) -> list[int]:
    return [a[2] for m, a in calls if m == "set_tensor_address" and a[1] == name]


def test_a_sequence_beyond_the_cache_is_refused_before_any_call(recorded: Recorded) -> None:
    recorded.session.allocate_cache(1, 2)
    recorded.calls()
    with pytest.raises(BuildError, match=r"slot 2 is beyond the 2 of the cache"):
        recorded.session.run(recorded.step((2, 4, 0)))
    assert recorded.calls() == []


def test_a_sequence_beyond_the_profile_is_refused_before_any_call(recorded: Recorded) -> None:
    recorded.session.allocate_cache(1, SLOTS)
    longest = recorded.plan.bounds.max_context
    recorded.run((0, 1, longest - 1))
    with pytest.raises(
        BuildError,
        match=rf"a sequence of {longest + 1} tokens is longer than the {longest} that the plan was"
        r" built for; raise limits\.max_context, and build again",
    ):
        recorded.session.run(recorded.step((1, 2, 3), (0, 1, longest)))
    assert recorded.calls() == []


def test_memory_that_is_not_there_is_named_with_the_setting_that_takes_it(
    flavour: Flavour,
) -> None:
    recorded = Recorded(flavour)
    recorded.session.allocate_cache(1, SLOTS)
    recorded.device.limit = recorded.device.used + 1000
    with pytest.raises(
        BuildError,
        match=r"no room for the cache of 6 sequences: .* GiB were asked, .*limits\.max_context",
    ):
        recorded.session.allocate_cache(1, SLOTS)
    with pytest.raises(BuildError, match=r"slot 0 is beyond the 0 of the cache"):
        recorded.session.run(recorded.step((0, 4, 0)))
    recorded.device.limit = 1 << 40
    recorded.session.allocate_cache(1, SLOTS)
    recorded.device.limit = recorded.device.used
    with pytest.raises(BuildError, match=r"a step's token_ids: .*limits\.max_tokens_per_step"):
        recorded.session.run(recorded.step((0, 4, 0)))
    with pytest.raises(BuildError, match=r"no room for the weights: .*use quant=int8 or a smaller"):
        recorded.opened()


def test_what_tensorrt_refuses_ends_the_step(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.session.allocate_cache(1, SLOTS)
    step = recorded.step((0, 4, 0))
    with monkeypatch.context() as patch:
        patch.setattr(Numbered, "execute_async_v3", lambda self, stream: False)
        with pytest.raises(RuntimeError, match="could not queue the step; its log says why"):
            recorded.session.run(step)
    for method in ("set_input_shape", "set_tensor_address"):
        with monkeypatch.context() as patch:
            patch.setattr(Numbered, method, lambda self, name, value: name != "positions")
            with pytest.raises(
                BuildError, match=r"does not take 'positions' as it is bound; build"
            ):
                recorded.session.run(step)
    with monkeypatch.context() as patch:
        patch.setattr(
            Numbered, "set_optimization_profile_async", lambda self, number, stream: False
        )
        with pytest.raises(BuildError, match="refuses the profile 'context'"):
            recorded.opened()
    with monkeypatch.context() as patch:
        patch.setattr(InterpretedEngine, "get_aliased_input_tensor", lambda self, name: None)
        with pytest.raises(BuildError, match=r"key_cache: the plan writes its cache elsewhere"):
            recorded.opened()


def test_a_sequence_longer_than_the_profile_comes_in_several_calls(flavour: Flavour) -> None:
    """The scheduler cuts by the session's limits; whole sequences, to be pooled, may be longer."""
    recorded = Recorded(flavour, max_tokens_per_step=8)
    recorded.session.allocate_cache(1, SLOTS)
    assert recorded.session.max_tokens_per_step == 8
    calls = recorded.run((0, 17, 0))
    assert _shapes(calls, "token_ids") == [
        ("context", (1, 8)),
        ("context", (1, 8)),
        ("generation", (1, 1)),
    ]


def test_a_call_larger_than_the_profile_is_refused(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(flavour, max_tokens_per_step=8)
    recorded.session.allocate_cache(1, SLOTS)
    monkeypatch.setattr(recorded.session._planner, "longest_row", 9)
    with pytest.raises(BuildError, match="does not take 'token_ids' as it is bound"):
        recorded.session.run(recorded.step((0, 9, 0)))


def test_closing_lets_go_of_all_device_memory(recorded: Recorded) -> None:
    recorded.session.allocate_cache(1, SLOTS)
    recorded.run((0, 4, 0))
    session = recorded.session
    held = [
        weakref.ref(buffer)
        for kept in (session._weights, session._caches, session._grown)
        for buffer in kept.values()
    ]
    session.close()
    assert len(held) == 1 + 2 + 7
    assert [reference() for reference in held] == [None] * len(held)
