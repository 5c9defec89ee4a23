"""Every op that the openvino engine lowers computes what its NumPy definition says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paddock.engines.openvino.lowering import TABLE
from paddock.graph import Array, DType, Tensor
from paddock.graph import ops as F
from tests.engines.lowered import Build, Case, compiled, error, layer_types, traced

EXACT = 2e-6  # f32 in another order
FREQUENCIES = tuple(float(f) for f in 10_000.0 ** -(np.arange(16) / 16))
POSITIONS = np.array([0, 1, 5, 300, 4097, 65537, 131071], np.int64)


def values(*shape: int, dtype: DType = DType.F32, seed: int = 0) -> Array:
    random = np.random.default_rng([seed, *shape])
    return random.standard_normal(shape).astype(np.float32).astype(dtype.numpy)


def tokens(case: Case, *shape: int, name: str = "x") -> Tensor:
    return case.tokens(name, values(7, *shape, seed=len(name) + ord(name[0])))


def quantized(
    case: Case,
    dtype: DType,
    rows: int,
    columns: int,
    groups: int,
    scale: DType = DType.F16,
) -> Tensor:
    random = np.random.default_rng(rows)
    limit = 127 if dtype is DType.I8 else 7
    integers = random.integers(-limit, limit + 1, (rows, columns)).astype(np.int8)
    if dtype is DType.I4:
        integers[0, :2] = -8  # the one value without its opposite
    scales = random.uniform(0.01, 0.02, (rows, groups)).astype(np.float16)
    scales = scales.astype(scale.numpy)
    weight: Tensor = F.Dequantize(DType.F32)(
        case.weight("w.weight", integers.astype(dtype.numpy)), case.weight("w.scale", scales)
    )
    return weight


def angles(case: Case, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    return F.rotary_angles(case.tokens("positions", POSITIONS), FREQUENCIES, factor)


def rotated(case: Case, size: int, *, interleaved: bool = False, factor: float = 1.0) -> Tensor:
    return F.rotary(tokens(case, 3, size), *angles(case, factor), interleaved=interleaved)


def split_up(case: Case) -> tuple[Tensor, ...]:
    return F.split(tokens(case, 24), 4, 8, 12)


def numbers(case: Case, experts: int, chosen: int = 2) -> Tensor:
    random = np.random.default_rng(experts)
    ids = [random.permutation(experts)[:chosen] for _ in range(7)]
    return case.tokens("numbers", np.array(ids, np.int64))


def two_products(case: Case) -> Tensor:
    ids = numbers(case, 5)
    inner = F.grouped_linear(tokens(case, 24), case.weight("up", values(5, 16, 24)), ids)
    return F.grouped_linear(inner, case.weight("down", values(5, 24, 16)), ids)


def routing(op: F.Route, *, bias: bool) -> Build:
    def build(case: Case) -> tuple[Tensor, Tensor]:
        weights, ids = F.route(tokens(case, 8), op, case.weight("b", values(8)) if bias else None)
        return weights, F.cast(ids, DType.F32)

    return build


ROUTES = [
    ("softmax", F.Route(3), False),
    ("softmax of those chosen", F.Route(3, "chosen_softmax"), False),
    ("normalized", F.Route(3, normalize=True, epsilon=0.1, scale=2.5), False),
    ("sigmoid with a bias", F.Route(3, "sigmoid"), True),
    ("in groups", F.Route(3, "sigmoid", groups=4, kept_groups=2, group_best=2), True),
    ("sparsemixer", F.Route(2, "sparsemixer", jitter=0.2), False),
]

CASES: dict[str, Build] = {
    "add": lambda c: F.add(tokens(c, 24), tokens(c, 24, name="y")),
    "add bias": lambda c: F.add(tokens(c, 24), c.weight("b", values(24))),
    "mul": lambda c: F.mul(tokens(c, 24), tokens(c, 24, name="y")),
    "mul by a row": lambda c: F.mul(tokens(c, 3, 8), c.weight("w", values(3, 8))),
    "scale": lambda c: F.scale(tokens(c, 24), 0.37),
    "clamp": lambda c: F.clamp(tokens(c, 24), -0.4, 0.7),
    "fill": lambda c: F.add(tokens(c, 24), F.fill(0.75, DType.F32, 24)),
    "fill of integers": lambda c: F.gather(
        c.weight("table", values(50, 24)),
        F.add(c.tokens("ids", np.array([47, 0, 7])), F.fill(2, DType.I64)),
    ),
    "split": split_up,
    "concat": lambda c: F.concat(tokens(c, 8), tokens(c, 16, name="y")),
    "reshape": lambda c: F.reshape(tokens(c, 24), 4, 6),
    "reshape back": lambda c: F.reshape(tokens(c, 4, 6), 24),
    "gather rows": lambda c: F.gather(tokens(c, 24), c.tokens("rows", np.array([6, 0, 3, 3]))),
    "replace rows": lambda c: F.replace_rows(
        tokens(c, 24),
        c.tokens("y", values(3, 24, seed=4)),
        c.tokens("rows", np.array([2, -1, 0, -1, -1, 0, 1])),
    ),
    "replace no rows": lambda c: F.replace_rows(
        tokens(c, 24), c.tokens("y", values(0, 24)), c.tokens("rows", np.full(7, -1))
    ),
    "fold rows": lambda c: F.fold_rows(c.tokens("x", values(6, 8)), 3),
    "embedding": lambda c: F.gather(
        c.weight("table", values(50, 24)), c.tokens("ids", np.array([49, 0, 7]))
    ),
    "embedding in bf16": lambda c: F.cast(
        F.gather(
            c.weight("table", values(50, 24, dtype=DType.BF16)),
            c.tokens("ids", np.array([49, 0, 7])),
        ),
        DType.F32,
    ),
    "rms norm": lambda c: F.rms_norm(tokens(c, 96), c.weight("w", values(96)), 1e-5),
    "rms norm of heads": lambda c: F.rms_norm(tokens(c, 4, 64), c.weight("w", values(64)), 0.3),
    "rms norm of little": lambda c: F.rms_norm(
        F.scale(tokens(c, 96), 1e-3), c.weight("w", values(96)), 1e-6
    ),
    "layer norm": lambda c: F.layer_norm(tokens(c, 96), c.weight("w", values(96)), None, 1e-5),
    "layer norm and bias": lambda c: F.layer_norm(
        tokens(c, 96), c.weight("w", values(96)), c.weight("b", values(96, seed=1)), 0.3
    ),
    "linear": lambda c: F.linear(tokens(c, 64), c.weight("w", values(32, 64))),
    "linear and bias": lambda c: F.add(
        F.linear(tokens(c, 64), c.weight("w", values(32, 64))), c.weight("b", values(32))
    ),
    "int8 embedding": lambda c: F.gather(
        quantized(c, DType.I8, 50, 64, 1), c.tokens("ids", np.array([49, 0, 7]))
    ),
    "int4 embedding": lambda c: F.gather(
        quantized(c, DType.I4, 50, 64, 2, DType.F32), c.tokens("ids", np.array([49, 0, 7]))
    ),
    **{f"route {name}": routing(op, bias=bias) for name, op, bias in ROUTES},
    "grouped linear": lambda c: F.grouped_linear(
        tokens(c, 24), c.weight("w", values(5, 16, 24)), numbers(c, 5)
    ),
    "grouped linear of one": lambda c: F.grouped_linear(
        tokens(c, 24), c.weight("w", values(5, 16, 24)), numbers(c, 5, chosen=1)
    ),
    "grouped linear of each and bias": lambda c: F.grouped_linear(
        tokens(c, 2, 24),
        c.weight("w", values(5, 16, 24)),
        numbers(c, 5),
        c.weight("b", values(5, 16)),
    ),
    "grouped linear of a share": lambda c: F.grouped_linear(
        tokens(c, 24), c.weight("w", values(3, 16, 24)), numbers(c, 9), first=4
    ),
    "grouped linear of bf16": lambda c: F.grouped_linear(
        tokens(c, 24),
        F.cast(c.weight("w", values(5, 16, 24, dtype=DType.BF16)), DType.F32),
        numbers(c, 5),
    ),
    "two grouped linears": lambda c: two_products(c),
    "head linear": lambda c: F.head_linear(
        tokens(c, 3, 24), c.weight("w", values(3, 20, 24)), slice(12, 20)
    ),
    "head linear turned": lambda c: F.head_linear(
        tokens(c, 3, 12), c.weight("w", values(3, 20, 24)), slice(0, 12), turned=True
    ),
    "weighted sum": lambda c: F.weighted_sum(tokens(c, 2, 24), tokens(c, 2, name="weights")),
    "angles": lambda c: angles(c),
    "angles times a factor": lambda c: angles(c, 1.3),
    "rotary": lambda c: rotated(c, 32),
    "rotary of a part": lambda c: rotated(c, 48),
    "rotary times a factor": lambda c: rotated(c, 32, factor=1.3),
    "rotary of neighbours": lambda c: rotated(c, 32, interleaved=True),
    "rotary of neighbours, a part": lambda c: rotated(c, 48, interleaved=True),
    **{
        f"activation {kind}": lambda c, kind=kind: F.activation(  # type: ignore[misc]
            F.scale(tokens(c, 64), 4.0), kind
        )
        for kind in F.ACTIVATIONS
    },
}


@pytest.mark.parametrize("name", CASES)
def test_lowering_computes_the_definition(name: str) -> None:
    assert error(CASES[name]) < EXACT


def test_every_op_of_the_table_is_compared() -> None:
    """Sources and dequantize are operands above; attentions and states have their own files."""
    compared = {type(n.op) for build in CASES.values() for n in traced(build)[0].nodes}
    elsewhere = {
        F.Attention,
        F.SinkAttention,
        F.BidirectionalAttention,
        F.CrossAttention,
        F.ImageAttention,
        F.RelativeAttention,
        F.CacheBlocks,
        F.StateSlots,
    }
    elsewhere |= {F.SequenceMean, F.CausalConv, F.SelectiveScan, F.GatedDeltaRule}
    elsewhere |= {F.RealGatedRecurrence}
    assert set(TABLE) - compared == elsewhere


@pytest.mark.parametrize("scale", [DType.F16, DType.F32])
@pytest.mark.parametrize(
    ("dtype", "group", "bound"), [("i8", None, 0.01), ("i4", 128, 0.01), ("i4", 32, 0.01)]
)
def test_products_with_integer_weights(
    dtype: str, group: int | None, bound: float, scale: DType
) -> None:
    """In integer arithmetic activations are rounded to 8 bits; without it nothing is."""
    groups = 512 // group if group else 1

    def build(case: Case) -> Tensor:
        return F.linear(tokens(case, 512), quantized(case, DType(dtype), 64, 512, groups, scale))

    rounding: dict[str, Any] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group or 128}
    assert error(build, DYNAMIC_QUANTIZATION_GROUP_SIZE=0) < EXACT
    assert error(build, **rounding) < bound
    model = compiled(build, **rounding)[0]
    kernels = [
        n.get_rt_info()["runtimePrecision"].astype(str)
        for n in model.get_runtime_model().get_ordered_ops()
        if n.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert kernels == [dtype]


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_half_precision_weights_are_widened_exactly(dtype: DType) -> None:
    def build(case: Case) -> Tensor:
        weight = case.weight("w", values(32, 64, dtype=dtype))
        return F.linear(tokens(case, 64), F.cast(weight, DType.F32))

    assert error(build) < EXACT


@pytest.mark.parametrize("interleaved", [False, True])
def test_bf16_arithmetic_does_not_round_positions(interleaved: bool) -> None:
    """A bf16 position above 256 is another position: the error would be of order 1."""

    def build(case: Case) -> Tensor:
        return rotated(case, 48, interleaved=interleaved, factor=1.3)

    assert error(build, "bf16") < 0.01


FUSED: dict[str, tuple[Callable[[Case], Tensor | tuple[Tensor, ...]], list[str]]] = {
    "rms norm": (CASES["rms norm"], ["RMS"]),
    "rms norm of heads": (CASES["rms norm of heads"], ["RMS"]),
    "linear and bias": (CASES["linear and bias"], ["FullyConnected"]),
    "layer norm": (CASES["layer norm"], ["Eltwise", "MVN"]),
}


@pytest.mark.parametrize("name", FUSED)
def test_forms_become_one_kernel(name: str) -> None:
    build, expected = FUSED[name]
    assert layer_types(compiled(build)[0]) == expected


@pytest.mark.parametrize("name", ["linear", "linear and bias"])
def test_silu_leaves_a_product_its_kernel(name: str) -> None:
    """Within the product, it would exclude the kernel that the compiler prefers for f32."""

    def build(case: Case) -> Tensor:
        product = CASES[name](case)
        assert isinstance(product, Tensor)
        return F.Activation("silu")(product)

    def kernels(build: Callable[[Case], Tensor | tuple[Tensor, ...]]) -> list[str]:
        model, case, _ = compiled(build)
        model.create_infer_request().infer(dict(case.fed))  # what was chosen is known after it
        told = [node.get_rt_info() for node in model.get_runtime_model().get_ordered_ops()]
        return [
            info["primitiveType"].astype(str)
            for info in told
            if info["layerType"].astype(str) == "FullyConnected"
        ]

    assert error(build) < EXACT
    assert kernels(build) == kernels(CASES[name])
    assert len(kernels(build)) == 1


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("rotary")])
def test_rotary_becomes_one_kernel(name: str) -> None:
    types = layer_types(compiled(CASES[name])[0])
    assert types.count("RoPE") == 1
    # Turned neighbours join the rest of their heads behind it.
    assert types.count("Concatenation") == (name == "rotary of neighbours, a part")
