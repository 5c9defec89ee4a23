"""Networks of models that keep states: TensorRT's layers are walked, against transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.engines import reference
from paddock.engines.padded_step import PaddedCall, PaddedPlanner
from paddock.engines.protocol import BuildError, Session
from paddock.engines.reference.evaluate import evaluate
from paddock.engines.tensorrt import engine, states
from paddock.engines.tensorrt.engine import prepare
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreter import Interpreter
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph import ops as F
from paddock.graph.ops import Source, Weight
from paddock.layers import trace
from paddock.models import registry
from paddock.weights import BoundWeights
from tests.engines.tensorrt.networks import OPTIONS, defined, played
from tests.engines.tensorrt.test_drawn_families import drawn
from tests.models.decoder_draws import FAMILIES, LENGTHS, Draw
from tests.models.play import chunks, decode, relative_error, together
from tests.models.state_draws import STATES

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
Patch = pytest.MonkeyPatch
# Rows of one call, of which one has padding, then a prompt beside a token, and tokens.
NEIGHBOURS = 2  # seeds the generator that puts both sequences into slots side by side
SIDE_BY_SIDE = [[(0, 10), (1, 9)], [(0, 20), (1, 1)], [(0, 1), (1, 1)], [(0, 10), (1, 2)]]


@pytest.mark.parametrize("family", STATES)
def test_equals_transformers(flavour: Flavour, family: str, tmp_path: Path) -> None:
    """In chunks beside sequences of other ages, together, and token by token."""
    session, made = drawn(flavour, family, tmp_path)
    random = np.random.default_rng(NEIGHBOURS)
    for steps in (SIDE_BY_SIDE, chunks(LENGTHS, random), together(LENGTHS), decode(LENGTHS, 30)):
        found = played(session, made.sequences, steps, random)
        assert relative_error(found, made.logits) < 1e-4


@pytest.mark.parametrize("family", ["BambaForCausalLM", "RecurrentGemmaForCausalLM"])
def test_rows_are_cut(flavour: Flavour, family: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """A prompt of more tokens than a row may have comes in several calls of one step."""
    monkeypatch.setattr(engine, "ROW_TOKENS", 16)
    session, made = drawn(flavour, family, tmp_path)
    assert session.plan.bounds.longest_row == 16
    found = played(session, made.sequences, together(LENGTHS), np.random.default_rng(0))
    assert relative_error(found, made.logits) < 1e-4


def rounded(graph: Graph, folder: Path, checkpoint: Path) -> Session:
    """The definitions, rounded after every op as the graph says."""
    return reference.build(graph, {}).open(
        BoundWeights.open(folder, checkpoint), {"block_size": 64}
    )


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("MambaForCausalLM", DType.BF16),
        ("Mamba2ForCausalLM", DType.F16),
        ("Qwen3NextForCausalLM", DType.BF16),
    ],
)
def test_in_narrow_floats(flavour: Flavour, family: str, dtype: DType, tmp_path: Path) -> None:
    """As far away as the NumPy definitions are that are rounded likewise: exponents of sums carry
    rounding far, in Mamba's first draw a fifth of the largest logit in bf16."""
    session, made = drawn(flavour, family, tmp_path, dtype)
    errors = []
    for each in (session, rounded(session.plan.graph, tmp_path / "bound", made.folder)):
        found = played(each, made.sequences, decode(LENGTHS, 30), np.random.default_rng(0))
        errors.append(relative_error(found, made.logits))
    assert errors[1] / 2 < errors[0] < 2 * errors[1]


# --- each op over a row as long as rows get ------------------------------------------------------


def row(op: str, tokens: int, past: int) -> tuple[Graph, dict[str, Array], F.StateSlots]:
    """A graph of one op over a row of weights: keys nearly alike, gates that hardly forget."""
    random = np.random.default_rng(tokens)
    held: dict[str, Array] = {
        "sequence_starts": np.array([0, tokens], np.int32),
        "past_lengths": np.array([past], np.int32),
        "sequence_slots": np.array([0], np.int32),
    }

    def weight(name: str, array: Any) -> Tensor:
        held[name] = np.asarray(array, np.float32)
        return Weight(name, DType.F32, held[name].shape)()

    def drawn_(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    shape = {
        "conv": (6, 4),
        "mamba": (6, 1, 4),
        "mamba2": (4, 8, 4),
        "delta": (4, 8, 8),
        "lru": (6, 1, 1),
    }[op]
    slots = F.StateSlots("state", DType.F32, (1, *shape))
    held["state"] = drawn_(1, *shape)
    with use_graph(Graph(DType.F32)) as graph:
        step = tuple(
            F.Input(name, DType.I32, held[name].shape)()
            for name in ("sequence_starts", "past_lengths", "sequence_slots")
        )
        state = slots()
        if op == "conv":
            x, w, b = weight("x", drawn_(tokens, 6)), weight("w", drawn_(6, 1, 4)), drawn_(6)
            y = F.causal_conv(x, w, weight("b", b), state, step)
        elif op == "lru":
            y = F.real_gated_recurrence(
                weight("x", drawn_(tokens, 6)),
                gate=weight("gate", random.random((tokens, 6))),
                rates=weight("rates", [-1e-4, -0.01, -0.1, -1, -8, -90]),
                state=state,
                step=step,
            )
        elif op == "delta":
            alike = drawn_(1, 2, 8) + 0.05 * drawn_(tokens, 2, 8)
            alike = alike / np.linalg.norm(alike, axis=-1, keepdims=True)
            y = F.gated_delta_rule(
                weight("q", drawn_(tokens, 2, 8)),
                weight("k", alike),
                weight("v", drawn_(tokens, 4, 8)),
                gate=weight("gate", -1e-3 * np.abs(drawn_(tokens, 4))),
                beta=weight("beta", 1 - 0.1 * np.abs(drawn_(tokens, 4))),
                state=state,
                step=step,
            )
        else:
            heads, size, n = shape
            rates = (heads, n) if op == "mamba" else (heads,)
            y = F.selective_scan(
                weight("x", drawn_(tokens, heads, size)),
                dt=weight("dt", np.abs(drawn_(tokens, heads))),
                a=weight("a", -np.abs(drawn_(*rates))),
                b=weight("b", drawn_(tokens, 2, n)),
                c=weight("c", drawn_(tokens, 2, n)),
                d=weight("d", drawn_(heads)),
                state=state,
                step=step,
            )
    graph.outputs = (y,)
    return graph, held, slots


@pytest.mark.parametrize("past", [0, 9])
@pytest.mark.parametrize("tokens", [128, 77, 1])
@pytest.mark.parametrize("op", ["conv", "mamba", "mamba2", "delta", "lru"])
def test_a_long_row_is_what_token_after_token_is(
    flavour: Flavour, op: str, tokens: int, past: int
) -> None:
    graph, held, slots = row(op, tokens, past)
    request = prepare(graph, OPTIONS | {"max_context": 200, "max_tokens_per_step": 128})
    _, definition = defined(flavour, request)
    network, known = (
        definition.network,
        held
        | {
            "positions": np.arange(tokens)[None],
            "row_lengths": np.array([tokens], np.int32),
            "write_indices": np.array([past], np.int32),
        },
    )
    flat = np.zeros((1, int(definition.state.inputs["state"].dims[1])), np.float32)
    flat[0, : held["state"].size] = held["state"].ravel()
    fed = {name: known[name] for name in definition.state.inputs} | {"state": flat}
    made = Interpreter(flavour.module, network.raw, network.constants).run(fed)
    sources = [o for n in graph.nodes if isinstance(o := n.op, Source)]
    arrays = {o: held[o.key] for o in sources}
    (wanted,) = evaluate(graph, arrays)
    after = arrays[slots]
    for got, right in (
        (made["logits"], wanted),
        (made["next.state"][0, : after.size].reshape(after.shape), after),
    ):
        assert np.abs(got - right).max() < 2e-5 * np.abs(right).max()


# --- what must not pass --------------------------------------------------------------------------


def changed_calls(**change: Callable[[PaddedCall], Any]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        own = PaddedPlanner._call

        def wrong(self: PaddedPlanner, *arguments: Any) -> PaddedCall:
            call = own(self, *arguments)
            return replace(call, **{name: new(call) for name, new in change.items()})

        patch.setattr(PaddedPlanner, "_call", wrong)

    return plant


def changed_form(name: str, change: Callable[..., Any]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(states, name, change(getattr(states, name)))


def states_of_the_first_slot(patch: Patch) -> None:
    own = TensorRTSession._slots_of
    patch.setattr(
        TensorRTSession,
        "_slots_of",
        lambda self, given, first: own(self, given, first if given.kind == "cache" else 0),
    )


DELTA = "Qwen3NextForCausalLM"
MISTAKES: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "padding counts": (
        "Mamba2ForCausalLM",
        changed_calls(
            row_lengths=lambda call: np.full_like(call.row_lengths, call.token_ids.shape[1])
        ),
    ),
    "a new sequence has a past": (
        "Mamba2ForCausalLM",
        changed_calls(write_indices=lambda call: np.maximum(call.write_indices, 1)),
    ),
    "another's state": ("MambaForCausalLM", states_of_the_first_slot),
    "decays of the next token": (
        DELTA,
        changed_form(
            "_sums",
            lambda own: (
                lambda state, x: (state.elementwise("SUB", (y := own(state, x))[0], x), y[1])
            ),
        ),
    ),
    "one level too few": (
        "MambaForCausalLM",
        changed_form("_levels", lambda own: lambda state: own(state) - 3),
    ),
    "a solution without its last level": (
        DELTA,
        changed_form("_levels", lambda own: lambda state: own(state) - 3),
    ),
    "a state is not kept": (
        DELTA,
        changed_form(
            "_keep",
            lambda own: (
                lambda state, source, after: own(
                    state, source, state.elementwise("SUB", after, after)
                )
            ),
        ),
    ),
}


@pytest.mark.parametrize(("family", "plant"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_shows(
    flavour: Flavour,
    monkeypatch: Patch,
    tmp_path: Path,
    family: str,
    plant: Callable[[Patch], None],
) -> None:
    plant(monkeypatch)
    session, made = drawn(flavour, family, tmp_path)
    found = played(session, made.sequences, SIDE_BY_SIDE, np.random.default_rng(NEIGHBOURS))
    assert not relative_error(found, made.logits) < 5e-4


def test_turing_has_no_products_of_f32(flavour: Flavour) -> None:
    family = "Mamba2ForCausalLM"
    model = registry.read(FAMILIES[family](Draw(family, 0, divisible=True))).build()
    graph = trace(model, dtype=DType.F16, max_context=LENGTHS[0])
    options = OPTIONS | {"max_context": LENGTHS[0], "target": ["sm75", "sm80"]}
    with pytest.raises(BuildError, match=r"sm75 .*has no products of f32 .*leave out sm75"):
        prepare(graph, options)
