"""The zoo's tiny checkpoints on the GPU: logits as transformers has them. Needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from paddock.engines import cuda
from paddock.engines.cuda.gpu import GPU
from paddock.engines.protocol import Session
from paddock.graph import DType
from paddock.layers import trace
from paddock.models import registry
from tests.models.bound_arrays import BoundArrays
from tests.models.expected_logits import golden
from tests.models.parity_cases import CASES, case
from tests.models.play import chunks, decode, play, relative_error, together, whole

pytestmark = pytest.mark.gpu
TOLERANCE = {DType.F32: 1e-4, DType.F16: 0.02, DType.BF16: 0.12}


@pytest.fixture(scope="module")
def gpu() -> Iterator[GPU]:
    made = GPU()
    yield made
    made.close()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(gpu: GPU, name: str, dtype: DType) -> None:
    one = case(name)
    model = registry.read(one.config).build()
    graph = trace(model, dtype=dtype, max_context=one.max_context)
    session: Session = cuda.build(graph, {}).open(
        BoundArrays(model, one.checkpoint(), dtype=dtype), {"block_size": 16}, device=gpu
    )
    lengths = [len(ids) for ids in one.sequences]
    plans = {
        "whole": whole(lengths),
        "together": together(lengths),
        "decode": decode(lengths, prompt=7),
        "chunks": chunks(lengths, np.random.default_rng(5)),
    }
    errors = {
        form: relative_error(
            play(session, one.sequences, plan, np.random.default_rng(3)), golden(name)
        )
        for form, plan in plans.items()
    }
    assert max(errors.values()) < TOLERANCE[dtype], errors
