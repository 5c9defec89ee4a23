"""NVIDIA's compiler takes every architecture, ahead of time, for targets that are not here."""

from __future__ import annotations

import pytest

from paddock.engines.tensorrt.definition import compile_plan
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.plan import kernels_in
from paddock.engines.tensorrt.targets import OLDEST
from paddock.graph import DType, QuantFormat
from tests.engines.tensorrt.networks import FP8, Model, defined
from tests.engines.tensorrt.zoo import request_of
from tests.models.parity_cases import CASES, CHARACTERISTIC

# The case of each architecture that has its peculiarities on, or else its first.
BY_ARCHITECTURE = {
    config["architectures"][0]: name
    for name, config in [
        *((n, CASES[n]) for n in reversed(CASES)),
        *((n, CASES[n]) for n in CHARACTERISTIC),
    ]
}
TARGETS = {
    DType.F16: ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"],
    DType.BF16: ["sm80", "sm86", "sm89", "sm120", "sm121"],
    DType.F32: ["sm80", "sm86", "sm89", "sm120", "sm121"],
}
INT8, INT4 = QuantFormat(DType.I8), QuantFormat(DType.I4, 8)


def compiled(
    flavour: Flavour,
    name: str,
    dtype: DType,
    *,
    embedded: bool = False,
    quant: QuantFormat | None = None,
) -> bytes:
    """For every target that has the types, in one plan."""
    model = Model(name, dtype, quant=quant)
    oldest = OLDEST[dtype if quant is None else quant.dtype]
    targets = [t for t in TARGETS[dtype] if int(t[2:]) >= int(oldest[2:])]
    request = model.request(target=targets)
    _, definition = defined(flavour, request, model.weights if embedded else None)
    return compile_plan(definition, request.targets)


@pytest.mark.parametrize("name", BY_ARCHITECTURE.values(), ids=BY_ARCHITECTURE)
def test_bf16_with_weights_fed(flavour: Flavour, name: str) -> None:
    compiled(flavour, name, DType.BF16)


@pytest.mark.parametrize("name", BY_ARCHITECTURE.values(), ids=BY_ARCHITECTURE)
def test_f16_with_weights_embedded(flavour: Flavour, name: str) -> None:
    compiled(flavour, name, DType.F16, embedded=True)


@pytest.mark.parametrize("quant", [INT8, INT4, FP8], ids=["int8", "int4", "fp8"])
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_quantized_weights(flavour: Flavour, dtype: DType, quant: QuantFormat) -> None:
    whole = compiled(flavour, "llama-biases", dtype)
    small = compiled(flavour, "llama-biases", dtype, quant=quant)
    assert kernels_in(small).keys() != kernels_in(whole).keys()


@pytest.mark.parametrize(
    "name",
    [
        "ArceeForCausalLM",
        pytest.param("RecurrentGemmaForCausalLM", marks=pytest.mark.slow),
    ],
)
def test_products_with_a_bias_compile_for_turing(flavour: Flavour, name: str) -> None:
    """Arcee's MLP squares what a ReLU leaves of one; RecurrentGemma's gates multiply with one."""
    request = request_of(name, DType.F16, None, target=["sm75"])
    assert compile_plan(defined(flavour, request)[1], request.targets)


def test_the_forms_are_those_that_fuse(flavour: Flavour) -> None:
    """A norm is one kernel, gate and up are one, attention is NVIDIA's, cache writes are in it."""
    found = set(kernels_in(compiled(flavour, "llama", DType.F16)))
    assert {"_gemm_mha_v2", "_gemv_mha_v1"} <= found  # of prompts, of single tokens
    assert any(name.endswith("MulMeanAddSqrtDivMulMulCast") for name in found)
    assert any(name.endswith("SiluMul") for name in found)
    windowed = set(kernels_in(compiled(flavour, "mistral", DType.F16)))
    assert {"_gemm_mha_v2", "_gemv_mha_v1"} <= windowed
