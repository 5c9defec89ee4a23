"""Drawn models of the zoo on the GPU: what transformers makes of them. Needs a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from paddock.engines.cuda.gpu import GPU
from paddock.graph import DType
from tests.engines.cuda import zoo
from tests.models.drawn_families import FAMILIES
from tests.models.encoder_cases import NAMES as ENCODERS
from tests.models.encoder_decoder_cases import NAMES as OF_TWO

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        reason="torch and transformers are not installed (`make parity` installs them)",
    ),
]


@pytest.fixture(scope="module")
def gpu() -> Iterator[GPU]:
    made = GPU()
    yield made
    made.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_equal_transformers(gpu: GPU, family: str, tmp_path: Path) -> None:
    assert zoo.decoder_error(family, DType.F32, gpu, tmp_path) < 2e-4


@pytest.mark.parametrize("name", [n for n in ENCODERS if n.endswith("/1")])
def test_encoders_equal_transformers(gpu: GPU, name: str) -> None:
    assert zoo.encoder_error(name, DType.F32, gpu) < 1e-4


@pytest.mark.parametrize("name", OF_TWO)
def test_encoder_decoders_equal_transformers(gpu: GPU, name: str) -> None:
    assert zoo.encoder_decoder_error(name, DType.F32, gpu) < 1e-4
