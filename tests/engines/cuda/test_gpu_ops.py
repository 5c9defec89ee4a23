"""Every kernel computes its NumPy definition, over random shapes and edge cases. Needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from paddock.engines.choosing import ChooseTokens, FillIn
from paddock.engines.cuda.buckets import Bucket
from paddock.engines.cuda.device import StoredWeight
from paddock.engines.cuda.fused import FusedLinear, Gated, ProjectedAttention
from paddock.engines.cuda.gpu import GPU
from paddock.engines.cuda.lowering import TABLE
from paddock.graph import Array, DType, Op
from paddock.graph import ops as F
from paddock.weights.quantize import pack_int4
from tests.engines.cuda.on_gpu import computed, worst

pytestmark = pytest.mark.gpu
DTYPES = (DType.F32, DType.F16, DType.BF16)
# Rounding to the type, once or (through a product's operands) twice.
NEAR = {DType.F32: 1e-5, DType.F16: 2e-3, DType.BF16: 1.2e-2}
SEEN: set[type[Op]] = set()


@pytest.fixture(scope="module")
def gpu() -> Iterator[GPU]:
    made = GPU()
    yield made
    made.close()


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> DType:
    found: DType = request.param
    return found


def draw(seed: int, *shape: int, dtype: DType = DType.F32, size: float = 1.0) -> Array:
    random = np.random.default_rng([seed, *shape])
    return (size * random.standard_normal(shape)).astype(np.float32).astype(dtype.numpy)


def check(gpu: GPU, op: Op, inputs: list[Array], dtype: DType, **options: object) -> None:
    SEEN.add(type(op))
    found = computed(gpu, op, inputs, **options)  # type: ignore[arg-type]
    wanted = op.compute(*inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for f, w in zip(found, wanted, strict=False):
        assert worst(f, w) < NEAR[dtype]


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (7, 64), (2, 3, 24), (129, 4096)])
def test_elementwise(gpu: GPU, dtype: DType, shape: tuple[int, ...]) -> None:
    x, y = draw(1, *shape, dtype=dtype), draw(2, *shape, dtype=dtype)
    check(gpu, F.Add(), [x, y], dtype)
    check(gpu, F.Add(), [x, y[0]], dtype)
    check(gpu, F.Mul(), [x, y[..., :]], dtype)
    check(gpu, F.Scale(0.37), [x], dtype)
    check(gpu, F.Clamp(-0.5, 0.25), [x], dtype)
    for kind in F.ACTIVATIONS:
        check(gpu, F.Activation(kind), [draw(3, *shape, dtype=dtype, size=4.0)], dtype)
    check(gpu, F.Cast(DType.F32), [x], dtype)
    check(gpu, F.Cast(dtype), [draw(4, *shape)], dtype)
    whole = np.random.default_rng(5).integers(-9, 1 << 40, shape)
    check(gpu, F.Add(), [whole, whole[0]], dtype)


@pytest.mark.parametrize("inner", [1, 5, 40, 1000, 14336])
def test_gate(gpu: GPU, dtype: DType, inner: int) -> None:
    for kind in ("silu", "gelu_tanh"):
        check(gpu, Gated(kind), [draw(1, 3, 2 * inner, dtype=dtype)], dtype)
        check(gpu, Gated(kind), [draw(1, 5, 2, 2 * inner, dtype=dtype)], dtype)


def test_moving_elements(gpu: GPU, dtype: DType) -> None:
    x = draw(1, 7, 24, dtype=dtype)
    check(gpu, F.Split((4, 8, 12)), [x], dtype)
    check(gpu, F.Split((1, 23)), [draw(1, 5, 3, 24, dtype=dtype)], dtype)
    check(gpu, F.Concat(), [x, draw(2, 7, 3, dtype=dtype), x], dtype)
    for index in (np.int64, np.int32):
        check(gpu, F.Gather(), [x, np.array([6, 0, 3, 3], index)], dtype)
        odd = draw(3, 50, 5, dtype=dtype)
        check(gpu, F.Gather(), [odd, np.array([49, 0, 7], index)], dtype)


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (7, 4, 64), (3, 4096), (2, 16384)])
def test_norms(gpu: GPU, dtype: DType, shape: tuple[int, ...]) -> None:
    x, w, b = draw(1, *shape, dtype=dtype), *(draw(i, shape[-1], dtype=dtype) for i in (2, 3))
    check(gpu, F.RMSNorm(1e-5), [x, w], dtype)
    check(gpu, F.RMSNorm(0.3), [draw(4, *shape, dtype=dtype, size=1e-3), w], dtype)
    exact = draw(2, shape[-1])
    check(gpu, F.RMSNorm(1e-5), [x, exact], dtype)
    if shape[-1] > 1:
        check(gpu, F.LayerNorm(1e-5), [x, w], dtype)
        check(gpu, F.LayerNorm(0.3), [x, w, b], dtype)
        check(gpu, F.LayerNorm(1e-5), [x, exact, b], dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", [32, 48])
def test_rotary(gpu: GPU, dtype: DType, size: int, interleaved: bool) -> None:
    frequencies = tuple(float(f) for f in 10_000.0 ** -(np.arange(16) / 16))
    positions = np.array([0, 1, 5, 300, 4097, 65537, 131071], np.int64)
    angles = F.RotaryAngles(frequencies, 1.3)
    SEEN.add(F.RotaryAngles)
    found = computed(gpu, angles, [positions])
    for f, w in zip(found, angles.compute(positions), strict=True):
        assert worst(f, w) < 1e-5
    check(gpu, angles, [positions.astype(np.int32)], DType.F16)
    cos, sin = angles.compute(positions)
    x = draw(1, 7, 3, size, dtype=dtype)
    check(gpu, F.Rotary(interleaved), [x, cos, sin], dtype)


# rows, outputs, inputs
PRODUCTS = [
    (1, 64, 64),
    (1, 700, 4096),
    (1, 600, 14336),
    (1, 48, 40),
    (2, 80, 64),
    (3, 256, 4096),
    (4, 6, 8),
    (17, 64, 40),
]


@pytest.mark.parametrize("sizes", PRODUCTS, ids=str)
@pytest.mark.parametrize("form", ["plain", "norm", "bias", "gate", "residual", "f32", "all"])
def test_products(gpu: GPU, dtype: DType, sizes: tuple[int, int, int], form: str) -> None:
    rows, outputs, inputs = sizes
    x, weight = draw(1, rows, inputs, dtype=dtype), draw(2, outputs, inputs, dtype=dtype, size=0.1)
    norm, bias = draw(3, inputs, dtype=dtype), draw(4, outputs, dtype=dtype)
    residual = draw(5, rows, outputs, dtype=dtype)
    op, rest = {
        "plain": (FusedLinear(), []),
        "norm": (FusedLinear(norm_eps=1e-5), [norm]),
        "bias": (FusedLinear(bias=True), [bias]),
        "gate": (FusedLinear(norm_eps=1e-5, bias=True, gate="silu"), [norm, bias]),
        "residual": (FusedLinear(residual=True), [residual]),
        "f32": (FusedLinear(dtype=DType.F32), []),
        "all": (FusedLinear(norm_eps=0.1, bias=True, residual=True), [norm, bias, residual]),
    }[form]
    check(gpu, op, [x, weight, *rest], dtype)


@pytest.mark.parametrize("kind", [DType.I8, DType.I4])
@pytest.mark.parametrize("rows", [1, 2, 4, 9])
@pytest.mark.parametrize("groups", [1, 4])
def test_products_of_integers(gpu: GPU, kind: DType, rows: int, groups: int) -> None:
    for dtype in (DType.F16, DType.BF16):
        random = np.random.default_rng(rows)
        limit = 127 if kind is DType.I8 else 7
        integers = random.integers(-limit - 1, limit + 1, (24, 256)).astype(np.int8)
        scales = random.uniform(0.01, 0.02, (24, groups)).astype(np.float16)
        weight = F.Dequantize(DType.F32).compute(integers.astype(kind.numpy), scales)
        packed = pack_int4(integers) if kind is DType.I4 else integers
        stored = StoredWeight(
            str(kind), gpu.upload(packed), gpu.upload(scales), dtype, weight.shape
        )
        x = draw(1, rows, 256, dtype=dtype)
        for op in (FusedLinear(), FusedLinear(gate="silu")):
            found = computed(gpu, op, [x, weight.astype(dtype.numpy)], stored=stored)
            wanted = op.compute(x.astype(np.float32), weight)
            assert worst(found[0], wanted) < NEAR[dtype]


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 33])
@pytest.mark.parametrize("inputs", [256, 4096, 14336])
def test_products_in_fp8(gpu: GPU, rows: int, inputs: int) -> None:
    """Against the exact product: weights are rounded to e4m3, and x of more than 2 rows."""
    for dtype in (DType.F16, DType.BF16):
        weight = draw(2, 96, inputs, dtype=dtype, size=inputs**-0.5)
        x = draw(1, rows, inputs, dtype=dtype)
        stored = gpu.fp8(gpu.upload(weight), dtype)
        norm, residual = draw(3, inputs, dtype=dtype), draw(4, rows, 96, dtype=dtype)
        for op, rest in (
            (FusedLinear(), []),
            (FusedLinear(norm_eps=1e-5), [norm]),
            (FusedLinear(gate="silu"), []),
            (FusedLinear(residual=True), [residual]),
        ):
            found = computed(gpu, op, [x, weight, *rest], stored=stored)
            exact = op.compute(*(a.astype(np.float32) for a in (x, weight, *rest)))
            error = np.linalg.norm(found[0].astype(np.float64) - exact) / np.linalg.norm(exact)
            assert error < 0.08, (op, error)


def of_e4m3(values: Array, scales: Array) -> Array:
    return values.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * scales[:, None]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("sizes", [(16, 64), (50, 1088), (4224, 4096), (176, 14336)], ids=str)
@pytest.mark.parametrize("form", ["plain", "norm", "gate", "all", "f32"])
def test_products_of_few_rows_in_fp8(
    gpu: GPU, rows: int, sizes: tuple[int, int], form: str
) -> None:
    """e4m3 against the weight as it was rounded: x is not rounded here. And x of any size."""
    outputs, inputs = sizes
    if rows * inputs > 5 * 14336:
        pytest.skip("x does not fit into shared memory: it is rounded to e4m3, for cuBLASLt")
    for dtype, size in ((DType.F16, 1.0), (DType.BF16, 1e-6), (DType.BF16, 1e6)):
        weight = draw(2, outputs, inputs, dtype=dtype, size=inputs**-0.5)
        stored = gpu.fp8(gpu.upload(weight), dtype)
        exact = of_e4m3(gpu.download(stored.values), gpu.download(stored.scales))
        x = draw(1, rows, inputs, dtype=dtype, size=size)
        norm, bias = draw(3, inputs, dtype=dtype), draw(4, outputs, dtype=dtype, size=size)
        residual = draw(5, rows, outputs, dtype=dtype, size=size)
        op, rest = {
            "plain": (FusedLinear(), []),
            "norm": (FusedLinear(norm_eps=1e-20), [norm]),
            "gate": (FusedLinear(norm_eps=1e-5, bias=True, gate="gelu"), [norm, bias]),
            "all": (FusedLinear(bias=True, residual=True), [bias, residual]),
            "f32": (FusedLinear(dtype=DType.F32), []),
        }[form]
        [found] = computed(gpu, op, [x, weight, *rest], stored=stored)
        wanted = op.compute(x, exact, *rest)
        assert worst(found, wanted) < NEAR[dtype], (dtype, size)


@pytest.mark.parametrize("rows", [385, 400])
@pytest.mark.parametrize("inner", [48, 1040, 14336])
def test_what_is_gated_is_rounded_where_it_is_made(gpu: GPU, rows: int, inner: int) -> None:
    for dtype in (DType.F16, DType.BF16):
        x, norm = draw(1, rows, 256, dtype=dtype), draw(3, 256, dtype=dtype)
        up = draw(2, 2 * inner, 256, dtype=dtype, size=256**-0.5)
        bias = draw(4, 2 * inner, dtype=dtype)
        first = FusedLinear(norm_eps=1e-5, bias=True, gate="silu")
        stored = gpu.fp8(gpu.upload(up), dtype)
        whole = [x, up, norm, bias]
        [apart] = computed(gpu, first, whole, stored=stored)
        [made] = computed(gpu, first, whole, stored=stored, gives_e4m3=True)
        flat = made.reshape(-1).view(np.uint8)
        scales = flat[apart.size : apart.size + 4 * rows].view(np.float32)
        values = of_e4m3(flat[: apart.size].reshape(rows, inner), scales)
        wanted = apart.astype(np.float32)
        error = np.abs(values - wanted)
        step = np.maximum(np.abs(wanted) / 16, scales[:, None] / 512)  # half of e4m3's
        assert (error <= step * 1.01).all()
        down = draw(5, 96, inner, dtype=dtype, size=inner**-0.5)
        stored = gpu.fp8(gpu.upload(down), dtype)
        second = FusedLinear()
        [two] = computed(gpu, second, [apart, down], stored=stored)
        [one] = computed(gpu, second, [made, down], stored=stored, takes_e4m3=True)
        assert worst(one, two) < NEAR[dtype]


# sequences as (past, new)
STEPS = {
    "one": [(0, 1)],
    "prompt": [(0, 29)],
    "decode": [(5, 1), (0, 1), (40, 1), (63, 1), (64, 1), (200, 1)],
    "mixed": [(5, 1), (0, 70), (33, 40), (150, 1), (64, 130)],
    "long": [(3000, 1)],
    "chunk": [(1000, 100)],
}


def attention_step(step: str, block_size: int) -> tuple[list[Array], int, int]:
    sequences = STEPS[step]
    needed = [-(-(past + new) // block_size) for past, new in sequences]
    random = np.random.default_rng(len(sequences))
    blocks = random.permutation(sum(needed) + 3)[: sum(needed)].astype(np.int32)
    arrays = [
        np.cumsum([0, *(new for _, new in sequences)]).astype(np.int32),
        np.array([past for past, _ in sequences], np.int32),
        blocks,
        np.cumsum([0, *needed]).astype(np.int32),
    ]
    return arrays, sum(new for _, new in sequences), sum(needed) + 3


def exact_bucket(starts: Array) -> Bucket:
    """The sizes of the step as it is, without padding."""
    sequences, tokens = len(starts) - 1, int(starts[-1])
    singles = next((s for s in range(sequences) if starts[s + 1] != s + 1), sequences)
    longest = int(np.diff(starts).max())
    return Bucket(tokens, sequences, sequences, singles, sequences - singles, longest)


SHAPES = [(4, 2, 16), (8, 1, 32), (6, 3, 64), (32, 8, 128), (4, 4, 48), (2, 1, 256), (20, 1, 64)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", ["plain", "window", "cap", "alibi"])
def test_attention(
    gpu: GPU, dtype: DType, step: str, shape: tuple[int, int, int], rule: str
) -> None:
    heads, kv_heads, size = shape
    if dtype is DType.F32 and step in ("long", "chunk"):
        pytest.skip("the simple kernel is compared on shorter sequences")
    block_size = 64 if size == 128 else 16
    arrays, tokens, blocks = attention_step(step, block_size)
    window = {"window": 17}.get(rule)
    cap = {"cap": 5.0}.get(rule)
    caches = [
        draw(6, blocks, block_size, kv_heads, size, dtype=dtype),
        draw(7, blocks, block_size, kv_heads, size, dtype=dtype),
    ]
    bucket = exact_bucket(arrays[0])
    q = draw(1, tokens, heads, size, dtype=dtype)
    k, v = (draw(i, tokens, kv_heads, size, dtype=dtype) for i in (2, 3))
    slopes = tuple(2.0**-i for i in range(1, heads + 1)) if rule == "alibi" else None
    op = F.Attention(size**-0.5, window, cap, slopes)
    compare_attention(gpu, op, [q, k, v], caches, arrays, dtype, bucket)
    if rule != "plain":
        return
    qkv = np.concatenate([x.reshape(tokens, -1) for x in (q, k, v)], axis=1)
    frequencies = tuple(float(f) for f in 100.0 ** -(np.arange(size // 4) / size))
    positions = np.concatenate([np.arange(p, p + n) for p, n in STEPS[step]])
    tables = F.RotaryAngles(frequencies).compute(positions)
    norms = [draw(i, size, dtype=dtype) for i in (8, 9)]
    for turned in (False, True):
        for normed in (False, True):
            op2 = ProjectedAttention(
                heads,
                kv_heads,
                size,
                size,
                size**-0.5,
                norm_eps=1e-5 if normed else None,
                turned=turned,
            )
            front = [qkv, *(norms if normed else []), *(tables if turned else [])]
            compare_attention(gpu, op2, front, caches, arrays, dtype, bucket)


def compare_attention(
    gpu: GPU,
    op: Op,
    front: list[Array],
    caches: list[Array],
    step: list[Array],
    dtype: DType,
    bucket: Bucket | None,
) -> None:
    SEEN.add(type(op))
    at = len(front)
    found, *left = computed(
        gpu,
        op,
        [*front, *(c.copy() for c in caches), *step],
        caches=(at, at + 1),
        bucket=bucket,
    )
    expected = [c.copy() for c in caches]
    wanted = np.asarray(op.compute(*front, *expected, *step))
    assert worst(found, wanted) < 2 * NEAR[dtype]
    for f, w in zip(left, expected, strict=True):
        assert worst(f, w) < NEAR[dtype]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(4, 2, 16), (8, 2, 64), (32, 8, 128), (2, 1, 256), (4, 4, 40)])
def test_attention_over_e4m3(
    gpu: GPU, dtype: DType, step: str, shape: tuple[int, int, int]
) -> None:
    """Keys and values are rounded to e4m3 when they are stored; nothing else is."""
    heads, kv_heads, size = shape
    block_size = 64 if size == 128 else 16
    arrays, tokens, blocks = attention_step(step, block_size)
    caches = [
        draw(i, blocks, block_size, kv_heads, size).astype(ml_dtypes.float8_e4m3fn) for i in (6, 7)
    ]
    bucket = exact_bucket(arrays[0])
    q = draw(1, tokens, heads, size, dtype=dtype)
    k, v = (draw(i, tokens, kv_heads, size, dtype=dtype) for i in (2, 3))
    for window in (None, 17):
        op = F.Attention(size**-0.5, window)
        compare_attention(gpu, op, [q, k, v], caches, arrays, dtype, bucket)
    qkv = np.concatenate([x.reshape(tokens, -1) for x in (q, k, v)], axis=1)
    fused = ProjectedAttention(heads, kv_heads, size, size, size**-0.5)
    compare_attention(gpu, fused, [qkv], caches, arrays, dtype, bucket)


@pytest.mark.parametrize("step", ["decode", "mixed", "long"])
@pytest.mark.parametrize("shape", [(4, 2, 16), (64, 8, 64), (8, 8, 96), (16, 1, 576)], ids=str)
@pytest.mark.parametrize("rule", ["sinks", "biases", "latent"])
def test_attention_of_other_kinds(
    gpu: GPU, dtype: DType, step: str, shape: tuple[int, int, int], rule: str
) -> None:
    heads, kv_heads, size = shape
    if (size > 256) != (rule == "latent"):
        pytest.skip("latent vectors alone are so long")
    value_size = 512 if rule == "latent" else size
    arrays, tokens, blocks = attention_step(step, 16)
    caches = [
        draw(6, blocks, 16, kv_heads, size, dtype=dtype),
        draw(7, blocks, 16, kv_heads, value_size, dtype=dtype),
    ]
    q = draw(1, tokens, heads, size, dtype=dtype)
    k = draw(2, tokens, kv_heads, size, dtype=dtype)
    v = draw(3, tokens, kv_heads, value_size, dtype=dtype)
    bucket = exact_bucket(arrays[0])
    if rule == "latent":
        op: Op = F.Attention(size**-0.5)
        compare_attention(gpu, op, [q, k, v], caches, arrays, dtype, bucket)
    elif rule == "biases":
        table = draw(8, 32, heads, dtype=dtype)
        op = F.RelativeAttention(1.0, max_distance=90)
        compare_attention(gpu, op, [q, k, v], caches, [*arrays, table], dtype, bucket)
    else:
        sinks = draw(8, heads, dtype=dtype, size=3.0)
        for window in (None, 17):
            op = F.SinkAttention(size**-0.5, window)
            compare_attention(gpu, op, [q, k, v], caches, [*arrays, sinks], dtype, bucket)
        qkv = np.concatenate([x.reshape(tokens, -1) for x in (q, k, v)], axis=1)
        op = ProjectedAttention(heads, kv_heads, size, size, size**-0.5, sinks=True)
        compare_attention(gpu, op, [qkv], caches, [*arrays, sinks], dtype, bucket)


@pytest.mark.parametrize("shape", [(4, 2, 16), (12, 12, 64), (3, 3, 10), (8, 8, 128)], ids=str)
@pytest.mark.parametrize("rule", ["plain", "window", "here", "biases"])
def test_attention_within_sequences(
    gpu: GPU, dtype: DType, shape: tuple[int, int, int], rule: str
) -> None:
    heads, kv_heads, size = shape
    starts = np.cumsum([0, 1, 130, 5, 64, 300, 63]).astype(np.int32)
    q = draw(1, starts[-1], heads, size, dtype=dtype)
    k, v = (draw(i, starts[-1], kv_heads, size, dtype=dtype) for i in (2, 3))
    window = {"window": 20, "here": 0}.get(rule)
    table = [draw(4, 32, heads, dtype=dtype)] if rule == "biases" else []
    op = F.BidirectionalAttention(size**-0.5, window, 32 if table else None)
    check(gpu, op, [q, k, v, starts, *table], dtype)
    check(gpu, F.SequenceMean(), [q.reshape(len(q), -1), starts], dtype)


@pytest.mark.parametrize("shape", [(4, 2, 16), (12, 12, 64), (3, 3, 10)], ids=str)
def test_attention_to_sources(gpu: GPU, dtype: DType, shape: tuple[int, int, int]) -> None:
    """Two sequences begin, with sources of their own; the one between them had its before."""
    heads, kv_heads, size = shape
    lengths, new = np.array([70, 33, 5], np.int32), [70, 0, 5]
    needed = [-(-n // 16) for n in lengths]
    blocks = np.random.default_rng(0).permutation(sum(needed) + 2)[: sum(needed)].astype(np.int32)
    starts = np.cumsum([0, 40, 1, 7]).astype(np.int32)
    caches = [draw(i, sum(needed) + 2, 16, kv_heads, size, dtype=dtype) for i in (6, 7)]
    q = draw(1, starts[-1], heads, size, dtype=dtype)
    k, v = (draw(i, sum(new), kv_heads, size, dtype=dtype) for i in (2, 3))
    step: list[Array] = [starts, np.cumsum([0, *new]).astype(np.int32), lengths, blocks]
    step.append(np.cumsum([0, *needed]).astype(np.int32))
    op = F.CrossAttention(size**-0.5)
    compare_attention(gpu, op, [q, k, v], caches, step, dtype, None)


ROUTES = {
    "softmax": F.Route(4, normalize=True),
    "sigmoid in groups": F.Route(
        6,
        "sigmoid",
        normalize=True,
        epsilon=1e-20,
        scale=2.5,
        groups=8,
        kept_groups=4,
        group_best=2,
    ),
    "chosen": F.Route(4, "chosen_softmax"),
    "groups by their best": F.Route(3, scale=0.7, groups=8, kept_groups=3),
    "sparsemixer": F.Route(2, "sparsemixer", jitter=0.01),
}


@pytest.mark.parametrize("how", ROUTES)
@pytest.mark.parametrize("experts", [16, 64, 256])
def test_routes(gpu: GPU, dtype: DType, how: str, experts: int) -> None:
    SEEN.add(F.Route)
    op = ROUTES[how]
    if op.chosen > experts // op.groups * op.kept_groups:
        pytest.skip("too few experts for the choice")
    logits = draw(1, 37, experts, dtype=dtype)
    logits[3] = logits[3, 0]  # equals: the lower number first
    given = [[logits]]
    if how == "sigmoid in groups":
        given += [[logits, draw(2, experts)], [logits, draw(2, experts, dtype=dtype)]]
    for inputs in given:
        weights, ids = computed(gpu, op, inputs)
        wanted_weights, wanted_ids = op.compute(*inputs)
        # Scores that differ in their last bit may change places.
        assert (ids == wanted_ids).mean() > 0.995
        same = (ids == wanted_ids).all(1)
        assert worst(weights[same], wanted_weights[same]) < 1e-4


@pytest.mark.parametrize("sizes", [(1, 4, 8, 24, 40), (1, 2, 4, 256, 512), (9, 4, 32, 130, 264)])
@pytest.mark.parametrize("tokens", [1, 40])
def test_experts(gpu: GPU, dtype: DType, sizes: tuple[int, ...], tokens: int) -> None:
    seed, chosen, experts, outputs, inputs = sizes
    random = np.random.default_rng([tokens, experts])
    ids = np.stack([random.permutation(experts)[:chosen] for _ in range(tokens)]).astype(np.int64)
    weight = draw(seed, experts, outputs, inputs, dtype=dtype, size=inputs**-0.5)
    bias = draw(2, experts, outputs, dtype=dtype)
    own = draw(4, tokens, chosen, inputs, dtype=dtype)
    for x in (draw(3, tokens, inputs, dtype=dtype), own):
        check(gpu, F.GroupedLinear(), [x, weight, ids], dtype)
        check(gpu, F.GroupedLinear(), [x, weight, ids, bias], dtype)
        half = experts // 2
        some = [x, weight[half:], ids, bias[half:]]
        check(gpu, F.GroupedLinear(first=half), some, dtype)
    weights = random.random((tokens, chosen)).astype(np.float32)
    check(gpu, F.WeightedSum(), [own, weights], dtype)
    check(gpu, F.WeightedSum(), [own, weights.astype(dtype.numpy)], dtype)


@pytest.mark.parametrize("sizes", [(4, 40, 24), (16, 256, 512), (3, 7, 5)])
@pytest.mark.parametrize("tokens", [1, 19])
def test_a_product_for_each_head(
    gpu: GPU, dtype: DType, sizes: tuple[int, int, int], tokens: int
) -> None:
    heads, rows, columns = sizes
    weight = draw(1, heads, rows, columns, dtype=dtype, size=0.1)
    first, count = rows // 3, rows // 2
    x = draw(2, tokens, heads, columns, dtype=dtype)
    check(gpu, F.HeadLinear(first, count), [x, weight], dtype)
    x = draw(2, tokens, heads, count, dtype=dtype)
    check(gpu, F.HeadLinear(first, count, turned=True), [x, weight], dtype)


def state_step() -> tuple[list[Array], int]:
    """Sequences with and without a past, of one token and of many, in slots of any order."""
    starts = np.cumsum([0, 1, 1, 70, 2, 9]).astype(np.int32)
    past, slots = np.array([4, 0, 0, 8, 3], np.int32), np.array([6, 1, 5, 0, 2], np.int32)
    return [starts, past, slots], int(starts[-1])


def compare_states(gpu: GPU, op: Op, front: list[Array], state: Array, dtype: DType) -> None:
    SEEN.add(type(op))
    step, _ = state_step()
    bias = [front.pop()] if isinstance(op, F.CausalConv) and len(front) == 3 else []
    at = len(front)
    found, left = computed(gpu, op, [*front, state.copy(), *step, *bias], states=(at,))
    kept = state.copy()
    wanted = np.asarray(op.compute(*front, kept, *step, *bias))
    assert worst(found, wanted) < 2 * NEAR[dtype]
    assert worst(left, kept) < 2 * NEAR[dtype]


@pytest.mark.parametrize("channels", [5, 300])
@pytest.mark.parametrize("width", [3, 4])
def test_convolutions(gpu: GPU, dtype: DType, channels: int, width: int) -> None:
    _, tokens = state_step()
    x, weight = draw(1, tokens, channels, dtype=dtype), draw(2, channels, 1, width, dtype=dtype)
    state = draw(3, 7, channels, width, dtype=dtype)
    compare_states(gpu, F.CausalConv(), [x, weight], state, dtype)
    compare_states(gpu, F.CausalConv(), [x, weight, draw(4, channels, dtype=dtype)], state, dtype)


# heads, size, groups, n, and whether every number decays at a rate of its own
@pytest.mark.parametrize(
    "sizes", [(6, 1, 1, 16, True), (8, 64, 2, 128, False), (2, 5, 1, 200, False)]
)
def test_scans(gpu: GPU, sizes: tuple[int, int, int, int, bool]) -> None:
    heads, size, groups, n, own = sizes
    _, tokens = state_step()
    x, dt = draw(1, tokens, heads, size), np.abs(draw(2, tokens, heads))
    a = -np.abs(draw(3, heads, n) if own else draw(3, heads))
    b, c = (draw(i, tokens, groups, n) for i in (4, 5))
    front = [x, dt, a, b, c, draw(6, heads)]
    compare_states(gpu, F.SelectiveScan(), front, draw(7, 7, heads, size, n), DType.F32)


@pytest.mark.parametrize("channels", [5, 300])
def test_real_gated_recurrences(gpu: GPU, dtype: DType, channels: int) -> None:
    _, tokens = state_step()
    x, rates = draw(1, tokens, channels, dtype=dtype), -np.abs(draw(3, channels, dtype=dtype))
    gate = np.random.default_rng(2).random((tokens, channels)).astype(dtype.numpy)
    state = draw(4, 7, channels, 1, 1, dtype=dtype)
    compare_states(gpu, F.RealGatedRecurrence(), [x, gate, rates], state, dtype)


def test_rows_of_another(gpu: GPU, dtype: DType) -> None:
    x, y = draw(1, 6, 5, dtype=dtype), draw(2, 4, 5, dtype=dtype)
    rows = np.array([-1, 3, 0, -1, 2, 2], np.int64)
    check(gpu, F.ReplaceRows(), [x, y, rows], dtype)
    check(gpu, F.ReplaceRows(), [x, y[:0], np.full(6, -1, np.int32)], dtype)


@pytest.mark.parametrize("sizes", [(4, 32, 2, 16), (8, 128, 4, 128)])
def test_delta_rules(gpu: GPU, sizes: tuple[int, int, int, int]) -> None:
    heads, value_size, key_heads, key_size = sizes
    _, tokens = state_step()
    q, k = (draw(i, tokens, key_heads, key_size, size=key_size**-0.5) for i in (1, 2))
    v, beta = draw(3, tokens, heads, value_size), np.abs(draw(4, tokens, heads, size=0.3))
    gate = -np.abs(draw(5, tokens, heads))
    state = draw(6, 7, heads, value_size, key_size)
    compare_states(gpu, F.GatedDeltaRule(), [q, k, v, gate, beta], state, DType.F32)


@pytest.mark.parametrize("vocabulary", [5, 1000, 32003, 128256])
@pytest.mark.parametrize("rows", [1, 7])
def test_choosing(gpu: GPU, vocabulary: int, rows: int) -> None:
    """The same tokens as the definition, for every filter and their combinations."""
    SEEN.update((ChooseTokens, FillIn))
    random = np.random.default_rng([rows, vocabulary])
    for top_k in (0, 1, 3, 50):
        for top_p in (1.0, 0.9, 0.3):
            for min_p in (0.0, 0.05):
                logits = draw(top_k, rows, vocabulary, size=3.0)
                if top_k == 3:
                    logits = np.round(logits)  # many equal ones
                choices: list[Array] = [
                    np.where(np.arange(rows) % 3 == 2, 0, 0.7).astype(np.float32),
                    np.full(rows, top_k, np.int32),
                    np.full(rows, top_p, np.float32),
                    np.full(rows, min_p, np.float32),
                    random.random(rows),
                    np.arange(rows, dtype=np.int32)[::-1].copy(),
                ]
                last = np.full(9, -7, np.int32)
                found = computed(gpu, ChooseTokens(), [logits, *choices, last])
                wanted = ChooseTokens().compute(logits, *choices, last)
                # An exponential differs by an ulp from NumPy's: a draw at the very edge may move.
                assert (found[0] == wanted[0]).mean() > 0.8
                if rows == 7:
                    assert np.array_equal(found[0][2::3], wanted[0][2::3])


def test_a_row_without_numbers_yields_none(gpu: GPU) -> None:
    logits = draw(1, 3, 1000)
    logits[0, 17], logits[1] = np.nan, -np.inf
    choices: list[Array] = [np.full(3, 0.5, np.float32), np.zeros(3, np.int32)]
    choices += [np.ones(3, np.float32)]
    choices += [np.zeros(3, np.float32), np.zeros(3), np.full(3, -1, np.int32)]
    found = computed(gpu, ChooseTokens(), [logits, *choices, np.zeros(2, np.int32)])
    assert list(found[0][:2]) == [-1, -1]
    assert found[0][2] >= 0


def test_every_op_of_the_table_is_compared() -> None:
    collectives = {op for op in TABLE if issubclass(op, F.Collective)}  # with several GPUs alone
    # What a run by names, or of several processes, leaves out is not missing.
    if F.Rotary not in SEEN:
        pytest.skip("not all of these tests ran in this process")
    assert set(TABLE) - SEEN == collectives
