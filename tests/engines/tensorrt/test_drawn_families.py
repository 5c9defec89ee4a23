"""Networks of drawn decoders, from the checkpoints that transformers saves of them.

As `test_parity.py`, for every family of the zoo: the layers that TensorRT holds are walked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from paddock.engines.tensorrt import attention
from paddock.engines.tensorrt.definition import compile_plan
from paddock.engines.tensorrt.engine import prepare
from paddock.engines.tensorrt.experts import softmax
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import interpreted_session
from paddock.engines.tensorrt.interpreter import Collective
from paddock.engines.tensorrt.network import CheckedNetwork
from paddock.engines.tensorrt.ranks import Link
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import DType, Mesh, QuantFormat
from paddock.graph import ops as F
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.engines.tensorrt.mistakes import changed_op
from tests.engines.tensorrt.networks import OPTIONS, SoiledDevice, defined, played
from tests.engines.tensorrt.ranks import RanksSession, StagesSession
from tests.models.decoder_draws import DECODERS, FAMILIES, LENGTHS, Draw
from tests.models.expert_draws import EXPERTS
from tests.models.play import chunks, decode, relative_error
from tests.models.remote_code_draws import REMOTE
from tests.models.state_draws import STATES

if TYPE_CHECKING:
    from tests.models.published import Published

Patch = pytest.MonkeyPatch
Form = Callable[..., Any]
Change = Callable[[CheckedNetwork, Form], Form]

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)


@pytest.mark.parametrize("family", [*DECODERS, *EXPERTS, *REMOTE])
def test_equals_transformers(flavour: Flavour, family: str, tmp_path: Path) -> None:
    session, made = drawn(flavour, family, tmp_path)
    random = np.random.default_rng(0)
    for steps in (chunks(LENGTHS, random), decode(LENGTHS, 30)):
        found = played(session, made.sequences, steps, random)
        assert relative_error(found, made.logits) < 1e-4


@pytest.mark.parametrize(
    ("family", "dtype", "quant"),
    [
        ("MixtralForCausalLM", DType.BF16, None),
        ("DeepseekV3ForCausalLM", DType.F16, QuantFormat(DType.I8)),
        ("GptOssForCausalLM", DType.BF16, QuantFormat(DType.I4, 8)),
    ],
)
def test_experts_compile(
    flavour: Flavour, family: str, dtype: DType, quant: QuantFormat | None
) -> None:
    compiles(flavour, family, dtype, quant)


def compiles(flavour: Flavour, family: str, dtype: DType, quant: QuantFormat | None) -> None:
    model = registry.read(FAMILIES[family](Draw(family, 0, divisible=True))).build()
    if quant is not None:
        quantize(model, quant)
    graph = trace(model, dtype=dtype, max_context=LENGTHS[0])
    _, definition = defined(flavour, prepare(graph, OPTIONS | {"max_context": LENGTHS[0]}))
    assert compile_plan(definition, ["sm80", "sm89", "sm120"])


def drawn(
    flavour: Flavour, family: str, folder: Path, dtype: DType = DType.F32
) -> tuple[TensorRTSession, Published]:
    """The first draw of a family as a network, and what transformers makes of it."""
    made = published(family, folder / "checkpoint")
    return one_rank(flavour, made, folder / "bound", Mesh(), dtype), made


def published(family: str, folder: Path, *, divisible: bool = False) -> Published:
    from tests.models.published import publish, publish_remote

    make = publish_remote if family in REMOTE else publish
    return make(family, 0, folder, divisible=divisible)


def one_rank(
    flavour: Flavour,
    made: Published,
    folder: Path,
    mesh: Mesh,
    dtype: DType = DType.F32,
    collective: Collective | None = None,
    link: Link | None = None,
) -> TensorRTSession:
    """A rank's network, over its share of the weights, which are put into a new folder."""
    from tests.models.bound_folder import bound

    architecture = registry.read(made.config)
    model = architecture.build()
    graph = trace(model, dtype=dtype, max_context=LENGTHS[0], mesh=mesh)
    weights = bound(model, architecture, made.folder, folder, mesh, dtype)
    asked = OPTIONS | {"max_context": LENGTHS[0], "ranks": mesh.tp}
    plan, definition = defined(flavour, prepare(graph, asked))
    return interpreted_session(plan, definition, weights, SoiledDevice(), collective, link)


# A soft cap and windows, experts, latent attention, state spaces, linear attention.
CHEAP = {
    "Gemma2ForCausalLM": "tp",
    "MixtralForCausalLM": "pp",
    "DeepseekV3ForCausalLM": "tp",
    "BambaForCausalLM": "pp",
    "Qwen3NextForCausalLM": "tp",
}


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        pytest.param(f, m, marks=[] if CHEAP.get(f) == m else pytest.mark.slow)
        for f in (*DECODERS, *EXPERTS, *STATES, *REMOTE)
        for m in ("tp", "pp")
    ],
)
def test_two_ranks_agree_with_transformers(
    flavour: Flavour, family: str, mesh: str, tmp_path: Path
) -> None:
    """Tensor-parallel ranks, which exchange in every layer, and two stages of a pipeline."""
    made = published(family, tmp_path / "checkpoint", divisible=True)

    def open_rank(rank: int, collective: Collective) -> TensorRTSession:
        own = Mesh(tp=2, tp_rank=rank)
        return one_rank(flavour, made, tmp_path / f"{rank}", own, collective=collective)

    def open_stage(stage: int, link: Link) -> TensorRTSession:
        own = Mesh(pp=2, pp_rank=stage)
        return one_rank(flavour, made, tmp_path / f"{stage}", own, link=link)

    session = RanksSession(open_rank, 2) if mesh == "tp" else StagesSession(open_stage, 2)
    random = np.random.default_rng(0)
    try:
        found = played(session, made.sequences, chunks(LENGTHS, random), random)
    finally:
        session.close()
    assert relative_error(found, made.logits) < 1e-4


# --- mistakes planted in what experts and sinks become, each of which compiles --------------------


def conditional(change_few: Change, change_many: Change) -> Callable[[Patch], None]:
    """One of the two forms of a product is wrong: the other must not hide it."""

    def plant(patch: Patch) -> None:
        own = CheckedNetwork.conditional

        def wrong(
            self: CheckedNetwork, condition: Any, operands: Any, few: Form, many: Form
        ) -> Any:
            return own(self, condition, operands, change_few(self, few), change_many(self, many))

        patch.setattr(CheckedNetwork, "conditional", wrong)

    return plant


def kept(network: CheckedNetwork, form: Form) -> Form:
    return form


def doubled(network: CheckedNetwork, form: Form) -> Form:
    def twice(*operands: Any) -> Any:
        y = form(*operands)
        return network.add("elementwise", y, y, network.enum("ElementWiseOperation", "SUM"))

    return twice


def without_sinks(patch: Patch) -> None:
    patch.setattr(attention, "_softmax_beside", lambda state, scores, sinks: softmax(state, scores))


def values_as_keys(patch: Patch) -> None:
    own = attention.updated
    patch.setattr(
        attention,
        "updated",
        lambda state, *cache: state.elementwise("PROD", y := own(state, *cache), y),
    )


MISTAKES: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "few tokens": ("MixtralForCausalLM", conditional(doubled, kept)),
    "many tokens": ("MixtralForCausalLM", conditional(kept, doubled)),
    "scores of all experts": (
        "GptOssForCausalLM",
        changed_op(F.Route, lambda op: replace(op, scores="softmax")),
    ),
    "scale of the weights": (
        "DeepseekV3ForCausalLM",
        changed_op(F.Route, lambda op: replace(op, scale=op.scale * 1.01)),
    ),
    "first expert one on": (
        "Qwen3MoeForCausalLM",
        changed_op(F.GroupedLinear, lambda op: replace(op, first=1)),
    ),
    "no sinks": ("GptOssForCausalLM", without_sinks),
    "cache of keys and values squared": ("DeepseekV2ForCausalLM", values_as_keys),
}


@pytest.mark.parametrize(("family", "plant"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_shows(
    flavour: Flavour,
    monkeypatch: Patch,
    tmp_path: Path,
    family: str,
    plant: Callable[[Patch], None],
) -> None:
    plant(monkeypatch)
    session, made = drawn(flavour, family, tmp_path)
    steps = decode(LENGTHS, 30)
    found = played(session, made.sequences, steps, np.random.default_rng(0))
    assert not relative_error(found, made.logits) < 5e-4  # NaN is far off, too
