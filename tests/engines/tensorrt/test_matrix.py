"""NVIDIA's compiler takes every class of the zoo in every form, for every target that has it.

One plan holds both profiles, of prompts and of single tokens, for all targets at once.
`make test-tensorrt-matrix` runs what is slow here.
"""

from __future__ import annotations

import pytest

from paddock.engines.tensorrt.definition import compile_plan
from paddock.engines.tensorrt.engine import arithmetic_of
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.targets import OLDEST
from paddock.graph import DType, QuantFormat
from paddock.models import registry
from tests.engines.tensorrt.networks import FP8, defined
from tests.engines.tensorrt.zoo import CLASSES, REFUSED, DrawnWeights, request_of

FORMATS = {
    "whole": None,
    "int8": QuantFormat(DType.I8),
    "int4": QuantFormat(DType.I4, 8),
    "fp8": FP8,
}
DTYPES = {"bf16": DType.BF16, "f16": DType.F16}
TARGETS = ("sm75", "sm80", "sm89", "sm120")


def test_no_class_is_left_out() -> None:
    assert {*CLASSES, *REFUSED} == registry.ARCHITECTURES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fed", "embedded"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CLASSES)
def test_compiles(flavour: Flavour, name: str, dtype: str, form: str, how: str) -> None:
    quant = FORMATS[form]
    types = arithmetic_of(request_of(name, DTYPES[dtype], quant, target=["sm89"]).graph)
    oldest = max(int(OLDEST[t][2:]) for t in types)  # some states are summed in f32
    targets = [t for t in TARGETS if int(t[2:]) >= oldest]
    request = request_of(name, DTYPES[dtype], quant, target=targets)
    weights = DrawnWeights(request.graph) if how == "embedded" else None
    _, definition = defined(flavour, request, weights)
    assert compile_plan(definition, request.targets)
