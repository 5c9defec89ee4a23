"""Every decoder family equals transformers on drawn configurations, from its saved checkpoint on.

Families whose code is not in transformers are compared with the class that has their mathematics
(`remote_code_draws.py`). For the others nothing is arranged for Paddock: transformers saves
config.json and weights, the registry reads the one, the family's weight map binds the others, and
the engines run prompts whole, in chunks and token by token.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from paddock.engines.protocol import Session
from paddock.graph import Mesh, Module
from paddock.layers import trace
from paddock.models import registry
from paddock.weights import BoundWeights
from tests.models.bound_folder import bound
from tests.models.decoder_draws import LENGTHS
from tests.models.drawn_families import FAMILIES
from tests.models.opened import OPTIONS, TOLERANCE, engine_kind
from tests.models.play import chunks, decode, play, relative_error
from tests.models.remote_code_draws import REMOTE
from tests.models.threads_as_ranks import MeshSession

if TYPE_CHECKING:
    from tests.models.published import Published

DRAWS = range(3)
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Published]:
    """Checkpoints by family and draw, each made once."""
    from tests.models.published import publish, publish_remote

    class Drawn(dict[tuple[str, int], "Published"]):
        def __missing__(self, key: tuple[str, int]) -> Published:
            family, number = key
            folder = tmp_path_factory.mktemp(f"{family}-{number}")
            # The last draw is for several ranks too.
            make = publish if family in FAMILIES else publish_remote
            self[key] = make(family, number, folder, divisible=number == DRAWS[-1])
            return self[key]

    return Drawn()


@pytest.mark.parametrize("number", DRAWS)
@pytest.mark.parametrize("family", [*FAMILIES, *REMOTE])
@pytest.mark.parametrize("engine", TOLERANCE)
def test_equals_transformers(
    engine: str,
    family: str,
    number: int,
    drawn: dict[tuple[str, int], Published],
    tmp_path: Path,
) -> None:
    made = drawn[family, number]
    architecture = registry.read(made.config)
    model = architecture.build()
    graph = trace(model, max_context=LENGTHS[0])
    kind = engine_kind(engine)
    weights = bound(model, architecture, made.folder, tmp_path / "bound", Mesh())
    session: Session = kind.build(graph, OPTIONS[engine]).open(weights, OPTIONS[engine])
    random = np.random.default_rng(number)
    try:
        for plan in (chunks(LENGTHS, random), decode(LENGTHS, 30)):
            error = relative_error(play(session, made.sequences, plan, random), made.logits)
            assert error < TOLERANCE[engine]
    finally:
        session.close()


RANKS = [(family, "reference") for family in (*FAMILIES, *REMOTE)]
# The attention in standard operations, and norms over what ranks hold together.
RANKS += [("Gemma2ForCausalLM", "openvino"), ("Olmo2ForCausalLM", "openvino")]


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
@pytest.mark.parametrize(("family", "engine"), RANKS)
def test_ranks_agree_with_transformers(
    family: str,
    engine: str,
    tp: int,
    pp: int,
    drawn: dict[tuple[str, int], Published],
    tmp_path: Path,
) -> None:
    made = drawn[family, DRAWS[-1]]
    architecture = registry.read(made.config)

    def bind(model: Module, mesh: Mesh) -> BoundWeights:
        return bound(
            model, architecture, made.folder, tmp_path / str(mesh.tp_rank + 2 * mesh.pp_rank), mesh
        )

    session = MeshSession(
        architecture,
        {},
        tp=tp,
        pp=pp,
        max_context=LENGTHS[0],
        bind=bind,
        engine=engine_kind(engine),
    )
    random = np.random.default_rng(tp)
    try:
        found = play(session, made.sequences, chunks(LENGTHS, random), random)
    finally:
        session.close()
    assert relative_error(found, made.logits) < TOLERANCE[engine]
