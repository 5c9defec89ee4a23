"""Each op as TensorRT's layers against its own NumPy definition, and what cannot be lowered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from paddock.engines import reference
from paddock.engines.protocol import BuildError
from paddock.engines.reference.evaluate import evaluate
from paddock.engines.tensorrt.compiler_log import CompilerLog
from paddock.engines.tensorrt.definition import compile_plan, define
from paddock.engines.tensorrt.engine import prepare
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import interpreted_session
from paddock.engines.tensorrt.interpreter import Interpreter
from paddock.engines.tensorrt.weights import ExternalWeights
from paddock.graph import Array, DType, Graph, Module, Op, Tensor, TensorType, use_graph
from paddock.graph import ops as F
from paddock.graph.ops import Source
from paddock.layers import Attention, Embedding, Step, VocabHead, trace
from tests.engines.lowered import Case, Held
from tests.engines.tensorrt.networks import OPTIONS, SoiledDevice, defined, played
from tests.models.bound_arrays import BoundArrays
from tests.models.play import chunks, relative_error, whole

BOUNDS = {**OPTIONS, "max_context": 32}
Build = Callable[[Case], Tensor | tuple[Tensor, ...]]


def random_array(*shape: int, dtype: DType = DType.F32) -> Array:
    values = np.random.default_rng(list(shape)).standard_normal(shape)
    return values.astype(np.float32).astype(dtype.numpy)


def error(flavour: Flavour, build: Build, dtype: DType = DType.F32) -> float:
    """Of what TensorRT's network computes, relative to the largest of what the definitions do."""
    case = Case(dtype)
    with use_graph(Graph(dtype)) as graph:
        made = build(case)
    graph.outputs = (made[0] if isinstance(made, tuple) else made,)
    graph.verify()
    request = prepare(graph, BOUNDS)
    log = CompilerLog(flavour)
    definition = define(request.graph, request.bounds, ExternalWeights(), flavour, log)
    network = definition.network
    interpreter = Interpreter(flavour.module, network.raw, network.constants)
    held, fed = Held(case.held), {}
    for given in definition.state.inputs.values():
        array, shape = held.stored(given.name), [d for d in given.dims if isinstance(d, int)]
        if given.dtype is DType.I4:
            shape[-1] //= 2
        fed[given.name] = array.reshape(shape)
    found = interpreter.run(fed)["logits"].astype(np.float32)
    sources = [op for n in graph.nodes if isinstance(op := n.op, Source)]
    (wanted,) = evaluate(graph, {op: case.held[op.key] for op in sources})
    wanted = wanted.astype(np.float32)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


X = random_array(5, 8)
HEADS = random_array(5, 3, 16)
ANGLES = random_array(5, 8)

CASES: dict[str, Build] = {
    "add": lambda c: F.add(c.weight("x", X), c.weight("y", random_array(5, 8) * 2)),
    "add a bias": lambda c: F.add(c.weight("x", X), c.weight("y", random_array(8))),
    "mul": lambda c: F.mul(c.weight("x", HEADS), c.weight("y", random_array(3, 16))),
    "scale": lambda c: F.scale(c.weight("x", X), 0.3),
    "clamp": lambda c: F.Clamp(-0.5, 0.25)(c.weight("x", X)),
    "fill": lambda c: F.add(c.weight("x", X), F.Fill(1.5, c.dtype, (8,))()),
    "linear": lambda c: F.linear(c.weight("x", X), c.weight("w", random_array(6, 8))),
    "head_linear": lambda c: F.head_linear(
        c.weight("x", HEADS), c.weight("w", random_array(3, 9, 16)), slice(2, 7)
    ),
    "head_linear turned": lambda c: F.head_linear(
        c.weight("x", HEADS), c.weight("w", random_array(3, 20, 6)), slice(4, 20), turned=True
    ),
    "rms_norm": lambda c: F.rms_norm(c.weight("x", X), c.weight("g", random_array(8)), 0.1),
    "rms_norm of heads": lambda c: F.rms_norm(
        c.weight("x", HEADS), c.weight("g", random_array(16)), 0.1
    ),
    "layer_norm": lambda c: F.layer_norm(
        c.weight("x", X + 3), c.weight("g", random_array(8)), None, 0.1
    ),
    "layer_norm with bias": lambda c: F.layer_norm(
        c.weight("x", X + 3), c.weight("g", random_array(8)), c.weight("b", random_array(8)), 0.1
    ),
    "split": lambda c: F.mul(*F.split(c.weight("x", X), 4, 4)),
    "split in three": lambda c: F.split(c.weight("x", X), 2, 5, 1)[1],
    "concat": lambda c: F.concat(c.weight("x", X), c.weight("y", random_array(5, 3))),
    "reshape": lambda c: F.reshape(c.weight("x", X), 2, 4),
    "reshape back": lambda c: F.reshape(c.weight("x", HEADS), 48),
    "gather": lambda c: F.gather(c.weight("x", X), c.weight("i", np.array([4, 0, 4]))),
    **{
        kind: lambda c, kind=kind: F.activation(c.weight("x", X * 3), kind)  # type: ignore[misc]
        for kind in F.ACTIVATIONS
    },
}


@pytest.mark.parametrize("name", CASES)
def test_an_op_computes_its_definition(flavour: Flavour, name: str) -> None:
    assert error(flavour, CASES[name]) < 1e-6


# --- experts -----------------------------------------------------------------------------------

ROUTES = {
    "softmax": F.Route(3),
    "sigmoid": F.Route(3, "sigmoid", normalize=True, epsilon=0.1, scale=2.5),
    "of those chosen": F.Route(3, "chosen_softmax"),
    "groups": F.Route(3, "sigmoid", groups=4, kept_groups=2, group_best=2),
    "sparsemixer": F.Route(2, "sparsemixer", jitter=0.3),
}
LOGITS = random_array(5, 8) * 2


@pytest.mark.parametrize("result", [0, 1], ids=["weights", "numbers"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("how", ROUTES)
def test_routes(flavour: Flavour, how: str, biased: bool, result: int) -> None:
    if how == "sparsemixer" and biased:
        pytest.skip("it takes no bias")

    def build(case: Case) -> Tensor:
        bias = case.weight("b", random_array(8)) if biased else None
        return F.route(case.weight("x", LOGITS), ROUTES[how], bias)[result]

    assert error(flavour, build) < 1e-6


IDS = np.array([[0, 3], [2, 1], [3, 2], [1, 0], [3, 1]])


@pytest.mark.parametrize("first", [None, 0, 2], ids=["all", "lower half", "upper half"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
@pytest.mark.parametrize("inputs", ["one", "each"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
def test_grouped_linear(
    flavour: Flavour, biased: bool, inputs: str, tokens: int, first: int | None
) -> None:
    """Few tokens, which fetch weights, and many, which meet all of them."""
    held = 4 if first is None else 2

    def build(case: Case) -> Tensor:
        x = random_array(tokens, 8) if inputs == "one" else random_array(tokens, 2, 8)
        return F.grouped_linear(
            case.weight("x", x),
            case.weight("w", random_array(held, 6, 8)),
            case.weight("i", IDS[:tokens]),
            case.weight("b", random_array(held, 6)) if biased else None,
            first=first,
        )

    assert error(flavour, build) < 1e-6


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kind", [DType.I8, DType.I4])
def test_integers_of_experts(flavour: Flavour, kind: DType, groups: int) -> None:
    integers = np.random.default_rng(1).integers(-7, 8, (4, 6, 16)).astype(kind.numpy)

    def build(case: Case) -> Tensor:
        scales = np.abs(random_array(4, 6, groups))
        weight = F.Dequantize(DType.F32)(case.weight("q", integers), case.weight("s", scales))
        return F.grouped_linear(
            case.weight("x", random_array(5, 16)), weight, case.weight("i", IDS)
        )

    assert error(flavour, build) < 1e-6


def test_weighted_sum(flavour: Flavour) -> None:
    assert (
        error(
            flavour,
            lambda c: F.weighted_sum(c.weight("y", HEADS), c.weight("w", random_array(5, 3))),
        )
        < 1e-6
    )


# --- positions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs", [8, 4])
def test_rotary(flavour: Flavour, interleaved: bool, pairs: int) -> None:
    """Of whole heads and of their first elements."""

    def build(case: Case) -> Tensor:
        positions = case.weight("p", np.array([0, 3, 7, 100, 30000]))
        frequencies = tuple(10.0**-i for i in range(pairs))
        cos, sin = F.rotary_angles(positions, frequencies, 1.25)
        return F.rotary(case.weight("x", HEADS), cos, sin, interleaved=interleaved)

    assert error(flavour, build) < 1e-6


# --- attention, which needs a cache ------------------------------------------------------------


class OneAttention(Module):
    """A model that is little but an attention."""

    def __init__(self, soft_cap: float | None, window: int | None, alibi: bool) -> None:
        self.embed = Embedding(32, 16)
        self.attn = Attention(
            16,
            heads=4,
            kv_heads=2,
            head_dim=8,
            rotary=None,
            window=window,
            soft_cap=soft_cap,
            alibi=1.0 if alibi else None,
        )
        self.head = VocabHead(16, 32)

    def forward(self, step: Step) -> Tensor:
        return self.head(self.attn(self.embed(step.token_ids), step), step)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("alibi", [False, True], ids=["", "alibi"])
@pytest.mark.parametrize("window", [None, 5], ids=["", "window"])
@pytest.mark.parametrize("soft_cap", [None, 2.0], ids=["", "cap"])
def test_every_kind_of_attention(
    flavour: Flavour, soft_cap: float | None, window: int | None, alibi: bool, dtype: DType
) -> None:
    model = OneAttention(soft_cap, window, alibi)
    exact, graph = (trace(model, dtype=t, max_context=32) for t in (DType.F32, dtype))
    arrays = {
        name: 4 * random_array(*slot.shape) / np.float32(slot.shape[-1] ** 0.5)
        for name, slot in model.named_parameters()
    }
    for part, rows in (("q", slice(0, 32)), ("k", slice(32, 48)), ("v", slice(48, 64))):
        arrays[f"attn.{part}_proj.weight"] = arrays["attn.qkv_proj.weight"][rows]
    request = prepare(graph, BOUNDS)
    plan, definition = defined(flavour, request)
    weights = BoundArrays(model, arrays, dtype=dtype)
    session = interpreted_session(plan, definition, weights, SoiledDevice())
    random = np.random.default_rng(1)
    sequences = [random.integers(0, 32, n) for n in (23, 9)]
    truth = played(
        reference.build(exact, {}).open(BoundArrays(model, arrays), {"block_size": 32}),
        sequences,
        whole([23, 9]),
        random,
    )
    found = played(session, sequences, chunks([23, 9], random), random)
    assert relative_error(found, truth) < {"f32": 1e-5, "f16": 8e-3, "bf16": 6e-2}[str(dtype)]
    compile_plan(definition, request.targets)


def test_a_release_without_ragged_attention_masks_instead(flavour: Flavour) -> None:
    """TensorRT 10.16's form: no lengths, no causal kind; it compiles here as well."""
    from tests.engines.tensorrt.networks import Model
    from tests.models.expected_logits import expected

    model = Model("mistral")
    old = flavour.without(ragged_attention=False)
    request = model.request()
    plan, definition = defined(old, request)
    session = interpreted_session(plan, definition, model.weights, SoiledDevice())
    sequences = model.case.sequences
    random = np.random.default_rng(2)
    found = played(session, sequences, chunks([len(s) for s in sequences], random), random)
    assert relative_error(found, expected("mistral")) < 1e-4
    names = {i.name for i in plan.inputs}
    assert "key_value_lengths" not in names
    assert compile_plan(definition, request.targets)


# --- what cannot be lowered --------------------------------------------------------------------


@dataclass(frozen=True)
class Unlowered(Op):
    """An op that no engine knows but the reference."""

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        return x


class Odd(Module):
    def __init__(self) -> None:
        self.embed = Embedding(32, 16)
        self.head = VocabHead(16, 32)

    def forward(self, step: Step) -> Tensor:
        return self.head(Unlowered()(self.embed(step.token_ids)), step)


def test_an_op_without_a_lowering_is_named_with_its_place(flavour: Flavour) -> None:
    graph = trace(Odd(), max_context=8)
    with pytest.raises(BuildError, match=r"test_lowering\.py:\d+.*unlowered"):
        prepare(graph, BOUNDS)
