"""The reference with an engine's rounding put in."""

import numpy as np
import pytest

from paddock.engines import openvino, reference
from paddock.engines.protocol import Rounding, rounding_of_graph
from paddock.engines.reference.rounding import RoundToFloat, RoundToIntegers, rounded
from paddock.graph import DType, Graph, QuantFormat
from paddock.graph.ops import Dequantize
from paddock.layers import quantize, trace
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


def test_integers_are_the_nearest_of_a_group() -> None:
    x = np.array([[127.0, -3.4, 0.6, 0.2], [0.0, 0.0, 0.0, 0.0]], np.float32)
    nearest = RoundToIntegers(8, 4, symmetric=True).compute(x)
    assert nearest.tolist() == [[127.0, -3.0, 1.0, 0.0], [0.0] * 4]
    in_pairs = RoundToIntegers(8, 2, symmetric=True).compute(x)
    assert in_pairs[0, :2].tolist() == [127.0, -3.0]
    assert in_pairs[0, 2] == np.float32(0.6)
    np.testing.assert_allclose(in_pairs[0, 3], 0.2, atol=0.6 / 254)


def test_the_last_group_may_be_smaller() -> None:
    x = np.array([[100.0, 1.0, 1.0, 1.0, 0.01]], np.float32)
    found = RoundToIntegers(8, 4, symmetric=True).compute(x)
    assert found.shape == x.shape
    assert found[0, 4] == np.float32(0.01)  # by a scale of its own


def test_asymmetric_integers_hold_both_ends() -> None:
    x = np.linspace(5, 6, 256, dtype=np.float32).reshape(1, 256)
    np.testing.assert_allclose(RoundToIntegers(8, 256, symmetric=False).compute(x), x, atol=1e-6)
    np.testing.assert_allclose(
        RoundToIntegers(4, 256, symmetric=False).compute(x), x, atol=0.5 / 15 + 1e-6
    )


def test_floats_are_those_of_the_other_type() -> None:
    x = np.array([1 + 2**-9, 1 + 2**-7], np.float32)
    assert RoundToFloat(DType.BF16).compute(x).tolist() == [1.0, 1 + 2**-7]


def tiny(*, quantized: bool) -> Graph:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    module = LlamaForCausalLM(config)
    if quantized:
        quantize(module, QuantFormat(DType.I8, None), head=None, skip=())
    return trace(module, dtype=DType.F32, max_context=64)


def test_what_meets_integers_and_what_is_cached_is_rounded() -> None:
    graph = tiny(quantized=True)
    made = rounded(graph, Rounding(DType.F32, 32, DType.U8))
    made.verify()
    found = [node.op for node in made.find(RoundToIntegers)]
    products = sum(
        node.op.name == "linear" and isinstance(node.inputs[1].node.op, Dequantize)
        for node in graph.nodes
    )
    assert products >= 2 * 4
    assert found.count(RoundToIntegers(8, 32, symmetric=True)) == products
    assert found.count(RoundToIntegers(8, 16, symmetric=False)) == 2 * 2  # keys, values
    assert len(found) == products + 4
    assert rounded(graph, Rounding(DType.F32)).dump() == graph.dump()


@pytest.mark.parametrize("quantized", [False, True])
def test_engines_say_what_they_round(quantized: bool) -> None:
    graph = tiny(quantized=quantized)
    assert reference.CAPABILITIES.rounding(graph, {}) == Rounding(DType.F32)
    assert rounding_of_graph(graph, {"cache_dtype": "u8"}) == Rounding(DType.F32, cache=DType.U8)
    by_openvino = openvino.CAPABILITIES.rounding(graph, {"cache_dtype": "u8"})
    assert by_openvino == Rounding(DType.F32, 64 if quantized else None, DType.U8)
    assert openvino.CAPABILITIES.rounding(graph, {"cache_dtype": "f32"}).cache is None
