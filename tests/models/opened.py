"""A case traced, built by an engine, and opened on the case's weights."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from paddock.engines.protocol import EngineKind, Session
from paddock.graph import DType
from paddock.layers import trace
from paddock.models import registry
from tests.models.bound_arrays import BoundArrays
from tests.models.parity_cases import Case

# Engines that run on any machine, and the largest error relative to the largest logit. The
# reference is held to what f32 sums in another order differ by, so that little goes unnoticed.
TOLERANCE = {"reference": 2e-5, "openvino": 1e-4}
ENGINES = tuple(TOLERANCE)
OPTIONS: dict[str, dict[str, Any]] = {
    "reference": {"block_size": 4},  # small, so that these short sequences have several
    "openvino": {"cache_dtype": "f32", "threads": 1},
}


def engine_kind(name: str) -> EngineKind:
    """The engine's module; skips the test where the library behind it is not installed."""
    if name == "openvino":
        pytest.importorskip("openvino", reason="the openvino engine needs openvino")
    module: EngineKind = importlib.import_module(f"paddock.engines.{name}")
    return module


def opened(case: Case, engine: str, *, dtype: DType = DType.F32) -> Session:
    """A session of this engine for the whole model on one rank."""
    kind = engine_kind(engine)
    model = registry.read(case.config).build()
    graph = trace(model, dtype=dtype, max_context=case.max_context)
    weights = BoundArrays(model, case.checkpoint())
    return kind.build(graph, OPTIONS[engine]).open(weights, OPTIONS[engine])
