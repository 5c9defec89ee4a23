"""Every decoder family through the cuda engine's host side, on the double; or refused by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from paddock.engines import cuda
from paddock.engines.protocol import BuildError
from paddock.graph import Mesh
from paddock.layers import trace
from paddock.models import registry
from tests.engines.cuda.host_device import HostDevice
from tests.models.bound_folder import bound
from tests.models.decoder_draws import LENGTHS
from tests.models.drawn_families import FAMILIES
from tests.models.play import chunks, play, relative_error

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        reason="torch and transformers are not installed (`make parity` installs them)",
    ),
]
LACKING = ("route", "head_linear", "sink_attention", "causal_conv")


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_or_names_the_op(family: str, tmp_path: Path) -> None:
    from tests.models.published import publish

    (tmp_path / "checkpoint").mkdir()
    made = publish(family, 0, tmp_path / "checkpoint", divisible=False)
    architecture = registry.read(made.config)
    model = architecture.build()
    graph = trace(model, max_context=LENGTHS[0])
    if any(node.op.name in LACKING for node in graph.nodes):
        with pytest.raises(BuildError, match="cuda does not know the op"):
            cuda.build(graph, {})
        return
    weights = bound(model, architecture, made.folder, tmp_path / "bound", Mesh())
    session = cuda.build(graph, {}).open(weights, {"block_size": 16}, device=HostDevice())
    random = np.random.default_rng(0)
    found = play(session, made.sequences, chunks(LENGTHS, random), random)
    assert relative_error(found, made.logits) < 1e-4
    session.close()
