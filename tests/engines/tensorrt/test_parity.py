"""The networks that TensorRT holds compute transformers' logits: every architecture, every step.

Nothing of Paddock's graph is evaluated here. The interpreter walks TensorRT's own layers, holds
each inferred shape and type against what it computes, and reads and writes the buffers at the
addresses that the session binds.
"""

from __future__ import annotations

import numpy as np
import pytest

from paddock.engines.tensorrt.flavours import Flavour
from paddock.graph import DType, QuantFormat
from tests.engines.tensorrt.networks import FP8, Model, played, session_of, tolerance
from tests.models.expected_logits import expected
from tests.models.parity_cases import CASES, CHARACTERISTIC
from tests.models.play import chunks, decode, relative_error, together, whole

SHORT = {DType.F32: "f32", DType.F16: "f16", DType.BF16: "bf16"}


@pytest.mark.parametrize("name", CASES)
def test_every_case_in_f32(flavour: Flavour, name: str) -> None:
    """Prompts whole and together, one token at a time, and ragged mixtures of both."""
    model = Model(name)
    session = session_of(flavour, model)
    sequences = model.case.sequences
    lengths = [len(ids) for ids in sequences]
    random = np.random.default_rng(len(name))
    for steps in (
        whole(lengths),
        together(lengths),
        decode(lengths, prompt=7),
        chunks(lengths, random),
    ):
        found = played(session, sequences, steps, random)
        assert relative_error(found, expected(name)) < tolerance(DType.F32, model.layers)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
@pytest.mark.parametrize("name", CASES)
def test_every_case_in_narrow_floats(flavour: Flavour, name: str, dtype: DType) -> None:
    model = Model(name, dtype)
    session = session_of(flavour, model)
    sequences = model.case.sequences
    random = np.random.default_rng(len(name))
    steps = chunks([len(ids) for ids in sequences], random)
    found = played(session, sequences, steps, random)
    error = relative_error(found, expected(name))
    assert error < tolerance(dtype, model.layers)
    assert error > tolerance(dtype, model.layers) / 1000  # it did compute in that type


@pytest.mark.parametrize("name", CHARACTERISTIC)
def test_many_sequences_of_all_ages_share_steps(flavour: Flavour, name: str) -> None:
    """Six sequences, each some first tokens of one of the two, in slots in no order."""
    model = Model(name)
    session = session_of(flavour, model)
    random = np.random.default_rng(len(name))
    long, short = model.case.sequences
    lengths = [int(n) for n in random.integers(1, len(short) + 1, 3)]
    lengths += [int(n) for n in random.integers(1, len(long) + 1, 3)]
    sequences = [(short if i < 3 else long)[:n] for i, n in enumerate(lengths)]
    found = played(session, sequences, chunks(lengths, random), random)
    truth = [expected(name)[0 if i >= 3 else 1][:n] for i, n in enumerate(lengths)]
    assert relative_error(found, truth) < tolerance(DType.F32, model.layers)


@pytest.mark.parametrize("name", CHARACTERISTIC)
def test_embedded_weights_are_the_same_network(flavour: Flavour, name: str) -> None:
    model = Model(name)
    random = np.random.default_rng(3)
    sequences = model.case.sequences
    steps = chunks([len(ids) for ids in sequences], random)
    found = [
        played(session_of(flavour, model, embedded=e), sequences, steps, np.random.default_rng(1))
        for e in (False, True)
    ]
    for fed, embedded in zip(*found, strict=True):
        np.testing.assert_array_equal(fed, embedded)


@pytest.mark.parametrize("name", CHARACTERISTIC)
@pytest.mark.parametrize(
    "quant",
    [QuantFormat(DType.I8), QuantFormat(DType.I4, 8), FP8],
    ids=["int8", "int4", "fp8"],
)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_quantized_weights_are_those_of_the_reference(
    flavour: Flavour, name: str, quant: QuantFormat, dtype: DType
) -> None:
    """Against the NumPy definitions over the same stored values: their rounding is not at issue."""
    from paddock.engines import reference

    model, exact = Model(name, dtype, quant=quant), Model(name, quant=quant)
    sequences = model.case.sequences
    lengths = [len(ids) for ids in sequences]
    random = np.random.default_rng(5)
    truth = played(
        reference.build(exact.graph, {}).open(exact.weights, {"block_size": 64}),
        sequences,
        whole(lengths),
        random,
    )
    found = played(session_of(flavour, model), sequences, chunks(lengths, random), random)
    assert relative_error(found, truth) < tolerance(dtype, model.layers)
