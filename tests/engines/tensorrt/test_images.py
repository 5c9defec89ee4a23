"""The networks that TensorRT holds of models that see compute what transformers computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from paddock.engines import padded_step, reference
from paddock.engines.padded_step import PaddedCall, PaddedPlanner
from paddock.engines.protocol import BuildError, StepInputs
from paddock.engines.tensorrt import attention, encoders
from paddock.engines.tensorrt.definition import Definition, compile_plan
from paddock.engines.tensorrt.engine import prepare
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import interpreted_session
from paddock.engines.tensorrt.interpreter import InterpreterError
from paddock.engines.tensorrt.lowering import TABLE
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph import DType, Mesh
from paddock.graph import ops as F
from paddock.layers import trace
from paddock.models import registry
from tests.engines.tensorrt.networks import OPTIONS, SoiledDevice, defined, tolerance
from tests.engines.tensorrt.zoo import REFUSED
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.bound_folder import bound
from tests.models.play import Plan, chunks, decode, relative_error, step_inputs, together, whole
from tests.models.test_vision import lengths, made, play
from tests.models.vision_cases import CONTEXT, VisionCase
from tests.models.vision_cases import NAMES as ALL

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
Patch = pytest.MonkeyPatch


def opened(
    flavour: Flavour,
    name: str,
    dtype: DType = DType.F32,
    **options: Any,
) -> tuple[TensorRTSession, Definition]:
    architecture = registry.read(VisionCase(name).config)
    model = architecture.build()
    weights = bound(model, architecture, made(name)[0], Path(mkdtemp()) / "bound", Mesh(), dtype)
    asked = OPTIONS | {"max_context": CONTEXT, **options}
    plan, definition = defined(
        flavour, prepare(trace(model, dtype=dtype, max_context=CONTEXT), asked)
    )
    return interpreted_session(plan, definition, weights, SoiledDevice(), None), definition


NAMES = [n for n in ALL if VisionCase(n).config["architectures"][0] not in REFUSED]


@pytest.mark.parametrize("name", ["qwen2_vl/1", "qwen2_5_vl/1"])
def test_a_step_with_places_is_refused(flavour: Flavour, name: str) -> None:
    with pytest.raises(
        BuildError, match=r"layers/step.py:\d+\): the engine tensorrt does not know"
    ):
        opened(flavour, name)


def error(session: TensorRTSession, name: str, steps: Plan) -> float:
    found = play(session, VisionCase(name), steps)
    return relative_error(found, made(name)[2])


def some_chunks(name: str) -> Plan:
    return chunks(lengths(VisionCase(name)), np.random.default_rng(len(name)))


@pytest.mark.parametrize(
    "name",
    [n if n.endswith("/1") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_equals_transformers(flavour: Flavour, name: str) -> None:
    """Whole, together, token by token, and in chunks that cut images anywhere."""
    session, _ = opened(flavour, name)
    sizes = lengths(VisionCase(name))
    for steps in (whole(sizes), together(sizes), decode(sizes, 2), some_chunks(name)):
        assert error(session, name, steps) < 1e-4


@pytest.mark.parametrize("name", ["llava/1", "gemma3/1"])
def test_several_images_share_a_call(flavour: Flavour, name: str) -> None:
    """In a step with room for them; padding of the shorter rows is nobody's."""
    session, _ = opened(flavour, name, max_tokens_per_step=512)
    assert session.plan.bounds.max_images >= 4
    assert error(session, name, together(lengths(VisionCase(name)))) < 1e-4


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gemma3/2", DType.BF16),
        pytest.param("gemma3/2", DType.F16, marks=pytest.mark.slow),
        pytest.param("idefics3/1", DType.BF16, marks=pytest.mark.slow),
        pytest.param("idefics3/1", DType.F16, marks=pytest.mark.slow),
    ],
)
def test_in_narrow_floats(flavour: Flavour, name: str, dtype: DType) -> None:
    """And NVIDIA's compiler takes them: prompts with images, and single tokens with none."""
    session, definition = opened(flavour, name, dtype)
    config = VisionCase(name).config
    layers = sum(config[part]["num_hidden_layers"] for part in ("text_config", "vision_config"))
    limit = tolerance(dtype, layers)
    assert limit / 1000 < error(session, name, some_chunks(name)) < limit
    assert compile_plan(definition, ["sm80", "sm89", "sm120"])


def test_an_image_is_as_long_as_its_positions_say(flavour: Flavour) -> None:
    """In a call as many images as its tokens have room for; one of any size in any case."""
    for name in NAMES:
        session, _ = opened(flavour, name)
        bounds, case = session.plan.bounds, VisionCase(name)
        image = case.prompts[1].placed[0].image
        assert bounds.max_patches == len(image.patches)
        assert bounds.patches_per_row == len(image.patches) // image.made
        assert bounds.max_images == max(1, 64 // len(image.patches))
        assert not [i for i in session.plan.inputs if "image" in str(i.dims) and i.kind != "step"]


def test_tokens_without_an_image_are_a_generation_call(
    flavour: Flavour, monkeypatch: Patch
) -> None:
    """They bring as little of an image as there can be; a token of an image brings all of it."""
    session, _ = opened(flavour, "gemma3/2")
    calls: list[PaddedCall] = []
    own = PaddedPlanner.calls

    def kept(self: PaddedPlanner, step: StepInputs) -> Iterator[PaddedCall]:
        for call in own(self, step):
            calls.append(call)
            yield call

    monkeypatch.setattr(PaddedPlanner, "calls", kept)
    play(session, VisionCase("gemma3/2"), decode(lengths(VisionCase("gemma3/2")), 2))
    alone = [call for call in calls if call.is_generation]
    assert len(alone) > 5
    per_row, most = session.plan.bounds.patches_per_row, session.plan.bounds.max_patches
    for call in calls:
        assert call.image_patches is not None
        assert call.image_rows is not None
        sees = bool((call.image_rows >= 0).any())
        assert call.image_patches.shape[1] == (most if sees else per_row)
        assert call.is_generation == (call.token_ids.shape[1] == 1 and not sees)


def of_unlike_lengths(session: Any, sizes: list[int]) -> Any:
    """Logits of three sequences, each of two tokens, one image, and a token."""
    case = VisionCase("llava/1")
    random = np.random.default_rng(3)
    batch, rows = [], []
    for slot, count in enumerate(sizes):
        ids = random.integers(4, 40, 2 + count + 1)
        batch.append((ids, 0, [slot]))
        rows += [-1, -1, *(sum(sizes[:slot]) + np.arange(count)), -1]
    step = step_inputs(session, batch, np.arange(len(rows)))
    session.allocate_cache(len(sizes), len(sizes))
    patches = random.standard_normal((sum(sizes), case.form.row_size)).astype(np.float32)
    return session.run(
        replace(
            step,
            image_patches=patches,
            image_positions=np.concatenate([np.arange(n) for n in sizes]),
            image_starts=np.cumsum([0, *sizes]).astype(np.int32),
            image_rows=np.array(rows),
        )
    )


def unlike_lengths_error(flavour: Flavour) -> float:
    session, _ = opened(flavour, "llava/1", max_tokens_per_step=512)
    most = session.plan.bounds.max_patches
    assert most is not None
    sizes = [most, most - 1, most - 2]
    architecture = registry.read(VisionCase("llava/1").config)
    model = architecture.build()
    weights = BoundCheckpoint(architecture, model, made("llava/1")[0])
    graph = trace(model, max_context=CONTEXT)
    exact = reference.build(graph, {}).open(weights, {"block_size": CONTEXT})
    return relative_error([of_unlike_lengths(session, sizes)], [of_unlike_lengths(exact, sizes)])


def test_images_of_unlike_lengths_share_a_call(flavour: Flavour) -> None:
    """Against the NumPy definitions: the padding of the shorter ones is seen by none."""
    assert unlike_lengths_error(flavour) < 1e-4


def test_padding_that_is_seen_shows(flavour: Flavour, monkeypatch: Patch) -> None:
    own = attention.row_lengths

    def wrong(state: Any, of: str = attention.STEP) -> Any:
        lengths = own(state, of)
        return state.elementwise("SUM", lengths, state.network.scalar(1, DType.I32, 1))

    monkeypatch.setattr(encoders, "row_lengths", wrong)
    assert not unlike_lengths_error(flavour) < 5e-4


def rows_of_the_first_image(patch: Patch) -> None:
    patch.setattr(padded_step, "_images_of", lambda rows, own=padded_step._images_of: own(rows)[:1])


def rows_counted_in_the_step(patch: Patch) -> None:
    own = PaddedPlanner._images

    def wrong(self: PaddedPlanner, step: Any, *rest: Any) -> dict[str, Any]:
        made = own(self, step, *rest)
        return made | {"image_rows": np.where(made["image_rows"] < 0, -1, made["image_rows"] + 1)}

    patch.setattr(PaddedPlanner, "_images", wrong)


def tokens_see_no_further_than_themselves(patch: Patch) -> None:
    patch.setattr(padded_step, "_ends", lambda images: np.arange(len(images)))


def everything_is_replaced(patch: Patch) -> None:
    own = TABLE[F.ReplaceRows]

    def wrong(state: Any, node: Any, inputs: list[Any]) -> Any:
        x, y, rows = inputs
        return own(state, node, [x, y, state.unary("ABS", rows)])

    patch.setitem(TABLE, F.ReplaceRows, wrong)


MISTAKES: dict[str, Callable[[Patch], None]] = {
    "the first image for all": rows_of_the_first_image,
    "rows one on": rows_counted_in_the_step,
    "causal within images": tokens_see_no_further_than_themselves,
    "text replaced": everything_is_replaced,
}


@pytest.mark.parametrize("plant", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_shows(
    flavour: Flavour, monkeypatch: Patch, plant: Callable[[Patch], None]
) -> None:
    plant(monkeypatch)
    name = "gemma3/1"
    session, _ = opened(flavour, name, max_tokens_per_step=512)
    try:
        found = error(session, name, together(lengths(VisionCase(name))))
    except InterpreterError:  # e.g. rows that there are not
        return
    assert not found < 5e-4
