"""What the openvino engine says no to, and how ops that it does not know reach it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino as ov
import pytest
from openvino import op as ov_op
from openvino import opset16

from paddock.engines import openvino, processor
from paddock.engines.openvino import settings as chosen
from paddock.engines.openvino.lowering import lower
from paddock.engines.openvino.settings import rounding, settings
from paddock.engines.openvino.weights import Weights
from paddock.engines.protocol import BuildError
from paddock.graph import Array, DType, Graph, Op, Tensor, TensorType, use_graph
from paddock.graph import ops as F
from paddock.graph.passes import expand
from paddock.graph.tensor import TOKENS
from tests.engines.lowered import Held, error


@dataclass(frozen=True)
class Softened(Op):
    """A plugin with an implementation for the engine."""

    limit: float

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        return np.tanh(x / self.limit) * np.float32(self.limit)

    lowerings: ClassVar[dict[str, Callable[..., Any]]] = {
        "openvino": lambda op, x: opset16.multiply(
            opset16.tanh(opset16.divide(x, np.float32(op.limit))), np.float32(op.limit)
        )
    }


@dataclass(frozen=True)
class Doubled(Op):
    """A plugin that says what it is in terms of other ops."""

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        return x + x

    def expand(self, *inputs: Tensor) -> Tensor:
        return F.add(inputs[0], inputs[0])


@dataclass(frozen=True)
class Unheard(Op):
    """A plugin for the reference engine only."""

    def infer(self, x: TensorType) -> TensorType:
        return x

    def compute(self, x: Array) -> Array:
        return x


@dataclass(frozen=True)
class Misfit(Op):
    """A plugin whose implementation OpenVINO does not take."""

    def infer(self, x: TensorType) -> TensorType:
        return x

    lowerings: ClassVar[dict[str, Callable[..., Any]]] = {
        "openvino": lambda op, x: opset16.transpose(x, np.array([0, 1, 2]))
    }


def graph_with(plugin: Op) -> Graph:
    with use_graph(Graph()) as graph:
        ids = F.input_tensor("token_ids", DType.I64, TOKENS)
        with graph.scope("model"), graph.scope("odd"):
            graph.outputs = (plugin(F.cast(ids, DType.F32)),)
    return graph


def test_a_plugin_brings_its_own_lowering() -> None:
    x = np.linspace(-9, 9, 24, dtype=np.float32).reshape(4, 6)
    assert error(lambda case: Softened(2.5)(case.tokens("x", x))) < 2e-6


def test_a_plugin_is_expanded() -> None:
    graph = openvino.build(graph_with(Doubled()), {}).graph
    assert [n.op.name for n in graph.nodes] == ["input", "cast", "add"]


def test_an_unknown_op_is_named_with_its_place() -> None:
    with pytest.raises(
        BuildError, match=r"model\.odd \(.*\): the engine openvino does not know the op unheard"
    ):
        openvino.build(graph_with(Unheard()), {})


def test_an_op_that_lost_its_lowering_is_named(tmp_path: Path) -> None:
    """As after an engine was built with a plugin of another version."""
    with pytest.raises(BuildError, match=r"model\.odd .*no lowering of the op unheard"):
        lower(graph_with(Unheard()), Weights(Held({})))


def test_what_openvino_refuses_is_reported_under_its_path() -> None:
    with pytest.raises(BuildError, match=r"^model\.odd \(.*\): misfit: "):
        lower(graph_with(Misfit()), Weights(Held({})))


def test_inputs_that_no_step_has_are_refused() -> None:
    with use_graph(Graph()) as graph:
        graph.outputs = (F.cast(F.input_tensor("images", DType.I64, TOKENS), DType.F32),)
    with pytest.raises(BuildError, match=r"the step has no array 'images'; it has token_ids, "):
        openvino.build(graph, {})


def test_another_number_of_operands_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ov_op._PagedAttentionExtension

    def longer(operands: list[Any]) -> Any:
        return real([*operands, operands[-1]])

    monkeypatch.setattr(ov_op, "_PagedAttentionExtension", longer)
    with pytest.raises(
        BuildError, match=r"does not take 28 operands .*; install .* pip install openvino==2026\.4"
    ):
        openvino.build(graph_with(Doubled()), {})


def test_a_missing_binding_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ov_op, "_PagedAttentionExtension")
    with pytest.raises(BuildError, match=r"has no openvino\.op\._PagedAttentionExtension; install"):
        openvino.build(graph_with(Doubled()), {})


@pytest.mark.parametrize("contents", ["", "{", '{"nodes": 3}', None])
def test_damaged_folders_are_refused(tmp_path: Path, contents: str | None) -> None:
    if contents is not None:
        (tmp_path / "graph.json").write_text(contents)
    with pytest.raises(BuildError, match=r"graph\.json: .*build the engine again"):
        openvino.load(tmp_path)


def test_version_is_that_of_the_compiler() -> None:
    assert openvino.version() == f"openvino {ov.__version__}"


def quantized_graph(
    *widths: tuple[int, int], dtype: DType = DType.F32, stored: DType = DType.I8
) -> Graph:
    """Products with integer weights of so many (columns, groups)."""
    with use_graph(Graph(dtype)) as graph:
        for i, (columns, groups) in enumerate(widths):
            integers = F.Weight(f"{i}.weight", stored, (8, columns))()
            scales = F.Weight(f"{i}.scale", DType.F16, (8, groups))()
            F.Dequantize(dtype)(integers, scales)
    return graph


@pytest.mark.parametrize(
    ("widths", "group"),
    [
        ([(1024, 1)], 128),
        ([(1024, 8)], 128),
        ([(1024, 32), (4096, 128)], 32),
        ([(1024, 8), (4096, 1)], 128),
        ([(576, 1), (1536, 1)], 128),
        ([(96, 1), (1536, 1)], 64),
        ([(1152, 12)], 32),
        ([(1024, 4)], 128),
    ],
)
def test_activations_are_grouped_as_weights_are(widths: list[tuple[int, int]], group: int) -> None:
    found = settings(quantized_graph(*widths), {})
    assert found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == group
    assert found["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize(
    ("graph", "asked", "precision", "cache"),
    [
        (Graph(), None, "f32", "f32"),
        (Graph(), "auto", "f32", "f32"),
        (Graph(), "u8", "f32", "u8"),
        (Graph(DType.BF16), "auto", "bf16", "bf16"),
        (Graph(DType.BF16), "u8", "bf16", "u8"),
        (quantized_graph((64, 1), dtype=DType.BF16), "auto", "f32", "f16"),
        (quantized_graph((64, 1)), "f32", "f32", "f32"),
    ],
)
def test_precisions(graph: Graph, asked: str | None, precision: str, cache: str) -> None:
    found = settings(graph, {"cache_dtype": asked, "threads": 3})
    assert found["INFERENCE_PRECISION_HINT"] == precision
    assert found["KV_CACHE_PRECISION"] == cache
    assert found["INFERENCE_NUM_THREADS"] == 3
    assert (found.get("KEY_CACHE_QUANT_MODE") == "BY_TOKEN") == (cache == "u8")
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" not in found or cache in ("f16", "f32")


@pytest.mark.parametrize(
    ("vectors", "dtype", "stored", "asked", "precision", "cache"),
    [
        (True, DType.BF16, DType.I4, "auto", "bf16", "bf16"),
        (True, DType.BF16, DType.I4, "u8", "bf16", "u8"),
        (True, DType.BF16, DType.I4, "f16", "f32", "f16"),
        (True, DType.BF16, DType.I8, "auto", "f32", "f16"),
        (True, DType.F32, DType.I4, "auto", "f32", "f16"),
        (False, DType.BF16, DType.I4, "auto", "f32", "f16"),
    ],
)
def test_arithmetic_between_products_of_four_bits(
    monkeypatch: pytest.MonkeyPatch,
    vectors: bool,
    dtype: DType,
    stored: DType,
    asked: str,
    precision: str,
    cache: str,
) -> None:
    monkeypatch.setattr(chosen, "multiplies_bf16_in_vectors", lambda: vectors)
    graph = quantized_graph((1024, 32), dtype=dtype, stored=stored)
    found = settings(graph, {"cache_dtype": asked})
    assert found["INFERENCE_PRECISION_HINT"] == precision
    assert found["KV_CACHE_PRECISION"] == cache
    assert found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 32
    told = rounding(graph, {"cache_dtype": asked})
    kept = None if cache == precision else DType(cache)
    assert (told.dtype, told.activation_group, told.cache) == (DType(precision), 32, kept)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", True),
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", False),
        ("flags\t\t: fpu avx2\n", False),
        ("Features\t: fp asimd bf16\n", False),
        (None, False),
    ],
)
def test_what_the_processor_multiplies(tmp_path: Path, text: str | None, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    assert processor.in_vectors(processor.features(file)) == expected


@pytest.mark.parametrize(("dtype", "cache"), [(DType.F32, "bf16"), (DType.BF16, "f32")])
def test_caches_that_do_not_go_with_the_arithmetic(dtype: DType, cache: str) -> None:
    with pytest.raises(BuildError, match=rf"engine\.cache_dtype={cache}: beside arithmetic in"):
        settings(Graph(dtype), {"cache_dtype": cache})


def test_the_cache_type_is_checked_when_building() -> None:
    with pytest.raises(BuildError, match=r"engine\.cache_dtype=bf16: "):
        openvino.build(graph_with(Doubled()), {"cache_dtype": "bf16"})


def test_expansion_stops_at_what_the_engine_has() -> None:
    """The table's own ops are never expanded, a plugin with a lowering neither."""
    graph = graph_with(Softened(2.0))
    assert expand(graph, "openvino", lambda op: True) is graph
    assert openvino.build(graph, {}).graph.nodes[-1].op == Softened(2.0)
