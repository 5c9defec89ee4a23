"""Networks of drawn decoders, from the checkpoints that transformers saves of them.

As `test_parity.py`, for every family of the zoo: the layers that TensorRT holds are walked.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from paddock.engines.tensorrt.engine import prepare
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import interpreted_session
from paddock.graph import Mesh
from paddock.layers import trace
from paddock.models import registry
from tests.engines.tensorrt.networks import OPTIONS, SoiledDevice, defined, played
from tests.models.decoder_draws import DECODERS, LENGTHS
from tests.models.play import chunks, decode, relative_error
from tests.models.remote_code_draws import REMOTE

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)


@pytest.mark.parametrize("family", [*DECODERS, *REMOTE])
def test_equals_transformers(flavour: Flavour, family: str, tmp_path: Path) -> None:
    from tests.models.bound_folder import bound
    from tests.models.published import publish, publish_remote

    make = publish if family in DECODERS else publish_remote
    made = make(family, 0, tmp_path / "checkpoint")
    architecture = registry.read(made.config)
    model = architecture.build()
    graph = trace(model, max_context=LENGTHS[0])
    weights = bound(model, architecture, made.folder, tmp_path / "bound", Mesh())
    plan, definition = defined(flavour, prepare(graph, OPTIONS | {"max_context": LENGTHS[0]}))
    session = interpreted_session(plan, definition, weights, SoiledDevice(), None)
    random = np.random.default_rng(0)
    for steps in (chunks(LENGTHS, random), decode(LENGTHS, 30)):
        found = played(session, made.sequences, steps, random)
        assert relative_error(found, made.logits) < 1e-4
