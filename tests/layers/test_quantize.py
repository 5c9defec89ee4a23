"""Which slots become integers, and that a graph of integers computes what they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from paddock.graph import Array, DType, GraphError, QuantFormat
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.models.bound_arrays import BoundArrays, quantized
from tests.models.opened import ENGINES, OPTIONS, TOLERANCE, engine_kind
from tests.models.parity_cases import Case, case
from tests.models.play import chunks, play, relative_error, whole

# OpenVINO rounds activations that meet integer weights to 8 bits, too. What a wrong scale or
# half of a packed pair does is of the order of 1.
ROUNDED = TOLERANCE | {"openvino": 0.12}
I8, I4 = QuantFormat(DType.I8), QuantFormat(DType.I4, 16)


def formats(
    some: Case, *, head: QuantFormat | None = None, skip: tuple[str, ...] = ()
) -> dict[str, str]:
    model = registry.read(some.config).build()
    quantize(model, I4, head=head, skip=skip)
    return {name: str(slot.quant) for name, slot in model.named_parameters() if slot.quant}


def test_every_matrix_of_a_linear_layer_is_quantized() -> None:
    found = formats(case("llama-one-layer"))
    assert found == {
        "model.layers.0.self_attn.qkv_proj.weight": "i4 groups of 16",
        "model.layers.0.self_attn.o_proj.weight": "i4 groups of 16",
        "model.layers.0.mlp.gate_up_proj.weight": "i4 groups of 16",
        "model.layers.0.mlp.down_proj.weight": "i8 per row",  # 40 columns are no whole groups
        "lm_head.weight": "i4 groups of 16",
    }


def test_the_head_and_the_skipped_are_their_own() -> None:
    found = formats(case("llama"), head=I8, skip=("*.o_proj.*", "model.layers.1.*"))
    assert found["lm_head.weight"] == "i8 per row"
    assert not any("o_proj" in name or "layers.1." in name for name in found)
    assert "model.layers.0.mlp.gate_up_proj.weight" in found
    assert "lm_head.weight" not in formats(case("llama"), head=I8, skip=("lm_head.weight",))


def test_a_pattern_that_matches_nothing_is_a_mistake() -> None:
    with pytest.raises(
        GraphError, match=r"no slot is named like 'lm_hed\.weight'; nearest are 'lm_h"
    ):
        formats(case("llama"), skip=("lm_hed.weight",))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "weights",
    [I8, I4, QuantFormat(DType.I8, 8), QuantFormat(DType.I8, 64), QuantFormat(DType.I4)],
    ids=str,
)
def test_integers_compute_what_they_stand_for(engine: str, weights: QuantFormat) -> None:
    """The same as the model in f32 whose weights are the integers times their scales."""
    some = case("qwen2-upper-windows")
    model = registry.read(some.config).build()
    quantize(model, weights, head=I8)
    graph = trace(model, max_context=some.max_context)
    kind = engine_kind(engine)
    source = BoundArrays(model, some.checkpoint())
    session = kind.build(graph, {}).open(source, OPTIONS[engine])

    rounded = some.checkpoint()
    for name in rounded:
        slot = source.slots.get(_fused(name))
        if slot is not None and slot.quant is not None:
            integers, scales = quantized(rounded[name], slot.quant)
            rounded[name] = _dequantized(integers, scales)
    plain = registry.read(some.config).build()
    exact = engine_kind("reference").build(
        trace(plain, dtype=DType.F64, max_context=some.max_context), {}
    )
    truth = exact.open(BoundArrays(plain, rounded), OPTIONS["reference"])

    random = np.random.default_rng(0)
    lengths = [len(ids) for ids in some.sequences]
    expected = play(truth, some.sequences, whole(lengths), random)
    found = play(session, some.sequences, chunks(lengths, random), random)
    session.close()
    assert relative_error(found, expected) < ROUNDED[engine]
    # The test is not of weights that rounding leaves alone.
    assert max(np.abs(rounded[n] - a).max() for n, a in some.checkpoint().items()) > 1e-3


def _fused(name: str) -> str:
    for part in ("q_proj", "k_proj", "v_proj"):
        name = name.replace(f".{part}.", ".qkv_proj.")
    for part in ("gate_proj", "up_proj"):
        name = name.replace(f".{part}.", ".gate_up_proj.")
    return name


def _dequantized(integers: Array, scales: Array) -> Array:
    values = integers.astype(np.float32).reshape(len(integers), scales.shape[1], -1)
    return (values * scales.astype(np.float32)[..., None]).reshape(integers.shape)
