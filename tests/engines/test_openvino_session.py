"""Sessions of whole models in every precision: against the reference engine, and against time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.engines import openvino, reference
from paddock.engines.openvino import settings as chosen
from paddock.engines.openvino.session import OpenVINOSession
from paddock.engines.protocol import BuildError, Session
from paddock.graph import Array, DType, Graph, Module, QuantFormat
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.models.bound_arrays import BoundArrays
from tests.models.parity_cases import LLAMA, Case
from tests.models.play import chunks, decode, play, relative_error, step_inputs, together, whole

# Wide enough for the kernels that real models get.
WIDE = Case(
    "wide",
    LLAMA
    | {
        "vocab_size": 160,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
    },
)
TIED = Case("wide-tied", WIDE.config | {"tie_word_embeddings": True})
OPTIONS: dict[str, Any] = {"threads": 2}

FORMATS: dict[str, tuple[DType, QuantFormat | None]] = {
    "f32": (DType.F32, None),
    "bf16": (DType.BF16, None),
    "int8": (DType.F32, QuantFormat(DType.I8)),
    "int8 beside bf16": (DType.BF16, QuantFormat(DType.I8)),
    "int4 groups of 64": (DType.F32, QuantFormat(DType.I4, 64, DType.F32)),
    "int4 groups of 32": (DType.BF16, QuantFormat(DType.I4, 32, DType.F32)),
}
# Rounding of weights is in both engines; what is left is that of activations. What is computed
# wrongly is off by about 1.
TOLERANCE = {"f32": 1e-5, "bf16": 0.03} | dict.fromkeys(list(FORMATS)[2:], 0.1)


def model_of(case: Case, quant: QuantFormat | None) -> Module:
    model: Module = registry.read(case.config).build()
    if quant is not None:
        quantize(model, quant)
    return model


def graph_of(case: Case, form: str, dtype: DType | None = None) -> tuple[Graph, BoundArrays]:
    """`dtype` instead of the format's own, for a reference that rounds nothing but weights."""
    stored, quant = FORMATS[form]
    model = model_of(case, quant)
    graph = trace(model, dtype=dtype or stored, max_context=256)
    return graph, BoundArrays(model, _rounded(case, stored), dtype=dtype or stored)


def _rounded(case: Case, dtype: DType) -> dict[str, Array]:
    return {n: a.astype(dtype.numpy).astype(np.float32) for n, a in case.checkpoint().items()}


def opened(case: Case, form: str, **options: Any) -> OpenVINOSession:
    graph, weights = graph_of(case, form)
    session = openvino.build(graph, {}).open(weights, OPTIONS | options)
    assert isinstance(session, OpenVINOSession)
    return session


@cache
def expected(name: str, form: str) -> list[Array]:
    case = {c.name: c for c in (WIDE, TIED)}[name]
    graph, weights = graph_of(case, form, DType.F32)
    session = reference.build(graph, {}).open(weights, {})
    return play(session, sequences(), whole([90, 40]), np.random.default_rng(0), soil=False)


def sequences() -> list[Array]:
    random = np.random.default_rng(7)
    return [random.integers(0, 160, n) for n in (90, 40)]


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def session(form: str) -> Iterator[OpenVINOSession]:
    session = opened(WIDE, form)
    yield session
    session.close()


def test_every_precision_is_near_the_reference(form: str, session: Session) -> None:
    random = np.random.default_rng(1)
    lengths = [90, 40]
    for plan in (whole(lengths), together(lengths), decode(lengths, 33), chunks(lengths, random)):
        found = play(session, sequences(), plan, random)
        assert relative_error(found, expected(WIDE.name, form)) < TOLERANCE[form]


@pytest.mark.parametrize("vectors", [False, True])
def test_four_bits_in_either_arithmetic(monkeypatch: pytest.MonkeyPatch, vectors: bool) -> None:
    monkeypatch.setattr(chosen, "multiplies_bf16_in_vectors", lambda: vectors)
    session = opened(WIDE, "int4 groups of 32")
    found = play(session, sequences(), together([90, 40]), np.random.default_rng(1))
    assert relative_error(found, expected(WIDE.name, "int4 groups of 32")) < 0.1
    assert session.runtime_report()["settings"]["KV_CACHE_PRECISION"] == (
        "bf16" if vectors else "f16"
    )


@pytest.mark.parametrize("form", ["f32", "bf16", "int8", "int4 groups of 64"])
def test_tied_vocabulary_head(form: str) -> None:
    session = opened(TIED, form)
    found = play(session, sequences(), together([90, 40]), np.random.default_rng(1))
    assert relative_error(found, expected(TIED.name, form)) < TOLERANCE[form]


@pytest.mark.parametrize("cache_dtype", ["f32", "f16", "u8"])
def test_text_does_not_depend_on_chunks_or_company(cache_dtype: str) -> None:
    session = opened(WIDE, "f32", cache_dtype=cache_dtype)
    random = np.random.default_rng(3)
    lengths = [90, 40]
    alone = play(session, sequences(), whole(lengths), random)
    for plan in (chunks(lengths, random), decode(lengths, 7), together(lengths)):
        found = play(session, sequences(), plan, random)
        # Of what differs by f32's rounding, a few values are stored one step of the cache apart.
        assert relative_error(found, alone) < {"f32": 1e-5, "f16": 3e-4, "u8": 3e-3}[cache_dtype]
        for f, a in zip(found, alone, strict=True):
            assert (f.argmax(1) == a.argmax(1)).all()


def test_weights_are_kept_alive() -> None:
    """OpenVINO reads embeddings where they lie, in memory that only the session still holds."""
    session = opened(WIDE, "f32")
    before = play(session, sequences(), together([90, 40]), np.random.default_rng(1))
    gc.collect()
    litter = [np.full(1 << 18, np.nan, np.float32) for _ in range(64)]
    after = play(session, sequences(), together([90, 40]), np.random.default_rng(1))
    for b, a in zip(before, after, strict=True):
        np.testing.assert_array_equal(b, a)
    del litter


def test_closing_gives_the_weights_back() -> None:
    session = opened(WIDE, "bf16")
    held = [weakref.ref(array) for array, _ in session._weights.kept]
    assert len(held) > 20
    session.close()
    session.close()
    gc.collect()
    assert not [ref for ref in held if ref() is not None]


def test_cache_may_grow_and_shrink() -> None:
    session = opened(WIDE, "f32")
    for blocks in (5, 50, 4):
        session.allocate_cache(blocks)
        logits = session.run(step_inputs(session, [(sequences()[0], 0, [0, 3, 1])], np.arange(90)))
        assert np.abs(logits - expected(WIDE.name, "f32")[0]).max() < 1e-4


def test_block_bytes_are_those_of_the_cache_tensors() -> None:
    token = 2 * 2 * 2 * 64  # layers, keys and values, heads, size
    assert opened(WIDE, "f32").block_bytes == 32 * token * 4
    assert opened(WIDE, "f32", cache_dtype="f16").block_bytes == 32 * token * 2
    # A scale and a zero of 4 bytes each for a head of a token.
    assert opened(WIDE, "f32", cache_dtype="u8").block_bytes == 32 * token * (64 + 8) // 64


def test_inputs_may_be_views_of_any_kind() -> None:
    """Steps are read as arrays, whatever their strides, and are not held on to."""
    session = opened(WIDE, "f32")
    session.allocate_cache(4)
    step = step_inputs(session, [(sequences()[0][:20], 0, [2])], np.arange(20))
    logits = session.run(step).copy()
    strided = {
        name: np.repeat(array, 2)[::2] for name, array in vars(step).items() if array is not None
    }
    np.testing.assert_array_equal(session.run(type(step)(**strided)), logits)


def test_report_names_kernels_settings_and_caches() -> None:
    report = opened(WIDE, "int8").runtime_report()
    assert report["cache"] == ["f16[2, 32, 64]", "f16[2, 32, 64]"]
    assert report["threads"] == 2
    products = {k: n for k, n in report["kernels"].items() if k.startswith("FullyConnected")}
    # Fused: qkv, output, gate and up, down, in two layers, and the vocabulary head.
    assert sum(products.values()) == 9
    assert all(k.endswith(" i8") for k in products)
    assert report["settings"]["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 128


def test_unquantized_projections_stay_apart() -> None:
    """They are checkpoint tensors, read where they lie."""
    kernels = opened(WIDE, "f32").runtime_report()["kernels"]
    assert sum(n for k, n in kernels.items() if k.startswith("FullyConnected")) == 15


def test_bf16_weights_have_no_copies_in_f32() -> None:
    """Layer by layer four projections of attention and three of the MLP, then the head."""
    session = opened(WIDE, "bf16")
    constants = [
        node
        for node in session._compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Const"
        and node.get_output_partial_shape(0).rank.get_length() == 2
        and node.get_output_shape(0)[0] > 1
    ]
    kinds = [node.get_rt_info()["outputPrecisions"].astype(str) for node in constants]
    assert kinds == ["bf16"] * (1 + 2 * 7 + 1)


def test_engine_survives_its_folder(tmp_path: Path) -> None:
    graph, weights = graph_of(WIDE, "int8")
    openvino.build(graph, {}).save(tmp_path)
    session = openvino.load(tmp_path).open(weights, OPTIONS)
    found = play(session, sequences(), together([90, 40]), np.random.default_rng(1))
    assert relative_error(found, expected(WIDE.name, "int8")) < TOLERANCE["int8"]


def test_weights_of_another_model_are_refused() -> None:
    graph, _ = graph_of(WIDE, "f32")
    narrow = Case("narrow", WIDE.config | {"intermediate_size": 256})
    _, weights = graph_of(narrow, "f32")
    with pytest.raises(
        BuildError,
        match=r"mlp\.gate_up_proj\.weight: the engine expects f32\[512, 256\], the bound weights"
        r" hold float32\[256, 256\]; build the engine again",
    ):
        openvino.build(graph, {}).open(weights, OPTIONS)


def test_weights_of_another_type_are_refused() -> None:
    graph, _ = graph_of(WIDE, "bf16")
    _, weights = graph_of(WIDE, "f32")
    with pytest.raises(BuildError, match=r"embed_tokens\.weight: the engine expects bf16"):
        openvino.build(graph, {}).open(weights, OPTIONS)
