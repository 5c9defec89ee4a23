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
from paddock.engines.tensorrt.network import CheckedNetwork
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import DType, Mesh, QuantFormat
from paddock.graph import ops as F
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.engines.tensorrt.mistakes import changed_op
from tests.engines.tensorrt.networks import OPTIONS, SoiledDevice, defined, played
from tests.models.decoder_draws import DECODERS, FAMILIES, LENGTHS, Draw
from tests.models.expert_draws import EXPERTS
from tests.models.play import chunks, decode, relative_error
from tests.models.remote_code_draws import REMOTE

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
    from tests.models.bound_folder import bound
    from tests.models.published import publish, publish_remote

    make = publish_remote if family in REMOTE else publish
    made = make(family, 0, folder / "checkpoint")
    architecture = registry.read(made.config)
    model = architecture.build()
    graph = trace(model, dtype=dtype, max_context=LENGTHS[0])
    weights = bound(model, architecture, made.folder, folder / "bound", Mesh(), dtype)
    plan, definition = defined(flavour, prepare(graph, OPTIONS | {"max_context": LENGTHS[0]}))
    return interpreted_session(plan, definition, weights, SoiledDevice(), None), made


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
