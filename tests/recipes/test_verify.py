"""The check of a build: it passes what rounding explains, and no mistake."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.engines import reference
from paddock.engines.protocol import BuildError, StepInputs
from paddock.graph import Array, DType
from paddock.recipes import pipeline, verify
from paddock.recipes.compose import compose
from paddock.recipes.tracing import Traced, trace_graph
from paddock.weights.bound import BoundWeights
from paddock.weights.write import write


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Traced, BoundWeights]:
    recipe = compose("demo").recipe
    checkpoint = pipeline.fetch(recipe)
    architecture = pipeline.read_architecture(recipe, checkpoint)
    traced = trace_graph(recipe, architecture, DType.F32)
    folder = tmp_path_factory.mktemp("bound")
    write(pipeline.prove_binding(traced, checkpoint), folder, DType.F32)
    return traced, BoundWeights.open(folder)


class Changed:
    """A reference session whose logits go through a function."""

    def __init__(self, traced: Traced, weights: BoundWeights, change: Any) -> None:
        self._session = reference.build(traced.graph, {}).open(weights, {})
        self._change = change
        self.vocab_size = self._session.vocab_size
        self.block_size = self._session.block_size
        self.block_bytes = self._session.block_bytes

    def allocate_cache(self, blocks: int) -> None:
        self._session.allocate_cache(blocks)

    def run(self, step: StepInputs) -> Array:
        changed: Array = self._change(self._session.run(step))
        return changed

    def close(self) -> None:
        self._session.close()


def compare(demo: tuple[Traced, BoundWeights], change: Any, allowed: float = 1e-3) -> float:
    traced, weights = demo
    return verify.compare(Changed(traced, weights, change), traced.graph, weights, allowed)


def test_the_same_logits_and_a_shifted_row_are_right(demo: tuple[Traced, BoundWeights]) -> None:
    assert compare(demo, lambda logits: logits) < 1e-6
    assert compare(demo, lambda logits: logits + 3.0) < 1e-6  # softmax does not see it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits: logits * 1.01, "does not compute what the model says"),
        (lambda logits: logits[::-1], "does not compute"),
        (lambda logits: np.roll(logits, 1, axis=1), "does not compute"),
        (lambda logits: logits[:-1], "expected"),
        (lambda logits: logits[:, :-1], "expected"),
        (lambda logits: np.where(logits > 5, np.nan, logits), "NaN or infinite"),
        (lambda logits: logits * np.float32(np.inf), "NaN or infinite"),
    ],
)
def test_wrong_logits_are_refused(
    demo: tuple[Traced, BoundWeights], change: Any, words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        compare(demo, change)


def test_a_session_that_forgets_its_cache_is_refused(demo: tuple[Traced, BoundWeights]) -> None:
    """The steps cover chunks, mixed batches and blocks in no order."""
    traced, weights = demo

    class Forgetful(Changed):
        def run(self, step: StepInputs) -> Array:
            self._session.allocate_cache(6)
            return super().run(step)

    with pytest.raises(BuildError, match="does not compute"):
        verify.compare(Forgetful(traced, weights, lambda x: x), traced.graph, weights, 0.4)


def test_a_session_that_mixes_up_blocks_is_refused(demo: tuple[Traced, BoundWeights]) -> None:
    traced, weights = demo

    class Mixed(Changed):
        def run(self, step: StepInputs) -> Array:
            ordered = np.arange(len(step.block_table), dtype=np.int32)
            return super().run(StepInputs(**{**vars(step), "block_table": ordered}))

    with pytest.raises(BuildError, match="does not compute"):
        verify.compare(Mixed(traced, weights, lambda x: x), traced.graph, weights, 0.4)


@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_the_steps_hold_together(block_size: int) -> None:
    past: dict[int, int] = {}
    for step in verify.steps(block_size, 100):
        assert step.sequence_starts[-1] == len(step.token_ids) == len(step.positions)
        assert step.block_starts[-1] == len(step.block_table)
        for i, before in enumerate(step.past_lengths):
            new = step.sequence_starts[i + 1] - step.sequence_starts[i]
            blocks = step.block_starts[i + 1] - step.block_starts[i]
            assert blocks == min(3, -(-(before + new) // block_size))
            assert step.positions[step.sequence_starts[i]] == before
        past[len(past)] = len(step.token_ids)
    assert past == {0: 24, 1: 23, 2: 2}


def test_tolerances_grow_with_what_is_rounded() -> None:
    f32 = verify.tolerance(DType.F32, quantized=False, small_cache=False, layers=24)
    bf16 = verify.tolerance(DType.BF16, quantized=False, small_cache=False, layers=24)
    int8 = verify.tolerance(DType.F32, quantized=True, small_cache=False, layers=24)
    u8 = verify.tolerance(DType.F32, quantized=False, small_cache=True, layers=24)
    assert f32 == 1e-3
    assert f32 < bf16 <= 0.6
    assert f32 < u8 < int8 <= 0.6


@pytest.mark.parametrize(
    ("whole", "cut", "free", "layers"),
    [
        (1 << 29, 1 << 28, 1 << 34, 24),
        (1 << 33, 1 << 31, 1 << 34, 4),
        (1 << 29, 1 << 28, 1 << 29, 4),
        (1 << 33, 1 << 31, 1 << 31, 0),
    ],
)
def test_how_much_of_a_model_is_compared(whole: int, cut: int, free: int, layers: int) -> None:
    assert verify.layers_to_check(whole, cut, 24, free) == layers


def test_weights_are_read_in_the_types_of_the_graph(
    demo: tuple[Traced, BoundWeights], tmp_path: Path
) -> None:
    """A bf16 build is held against an f32 reference over the same weights."""
    recipe = compose("demo", ["dtype=bf16"]).recipe
    checkpoint = pipeline.fetch(recipe)
    architecture = pipeline.read_architecture(recipe, checkpoint)
    traced = trace_graph(recipe, architecture, DType.BF16)
    write(pipeline.prove_binding(traced, checkpoint), tmp_path, DType.BF16)
    weights = BoundWeights.open(tmp_path)
    session = reference.build(traced.graph, {}).open(weights, {})
    error = verify.compare(session, demo[0].graph, weights, 0.4)
    assert (
        1e-4
        < error
        < verify.tolerance(DType.BF16, quantized=False, small_cache=False, layers=traced.layers)
    )


def test_options_are_passed_as_mappings(demo: tuple[Traced, BoundWeights]) -> None:
    options: Mapping[str, Any] = pipeline.engine_options(compose("demo").recipe)
    assert options["threads"] >= 1
    assert set(options) == {"threads", "cache_dtype"}
