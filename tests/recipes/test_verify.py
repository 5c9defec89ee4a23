"""The check of a build: it passes what rounding explains, and no mistake."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from paddock.engines import openvino, reference
from paddock.engines.protocol import BuildError, Rounding, Session, StepInputs
from paddock.engines.reference.rounding import rounded
from paddock.graph import Array, DType, Graph
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
    """A session whose steps and logits go through functions."""

    def __init__(self, session: Session, change: Any = None, change_step: Any = None) -> None:
        self._session, self._change, self._change_step = session, change, change_step
        self.vocab_size, self.block_size = session.vocab_size, session.block_size
        self.block_bytes = session.block_bytes
        self.state_bytes = session.state_bytes

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        self._session.allocate_cache(blocks, slots)

    def run(self, step: StepInputs) -> Array:
        logits = self._session.run(self._change_step(step) if self._change_step else step)
        changed: Array = self._change(logits) if self._change else logits
        return changed

    def close(self) -> None:
        self._session.close()


@pytest.fixture(scope="module")
def expected(demo: tuple[Traced, BoundWeights]) -> verify.Expected:
    traced, weights = demo
    return verify.Expected(traced.graph, None, weights)


def compare(demo: tuple[Traced, BoundWeights], expected: verify.Expected, change: Any) -> float:
    traced, weights = demo
    session = Changed(reference.build(traced.graph, {}).open(weights, {}), change)
    return expected.check(session, layers=traced.layers).error


def test_the_same_logits_and_a_shifted_row_are_right(
    demo: tuple[Traced, BoundWeights], expected: verify.Expected
) -> None:
    assert compare(demo, expected, lambda logits: logits) < 1e-6
    assert compare(demo, expected, lambda logits: logits + 3.0) < 1e-6  # softmax does not see it


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
    demo: tuple[Traced, BoundWeights], expected: verify.Expected, change: Any, words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        compare(demo, expected, change)


@dataclass(frozen=True)
class Built:
    """The demo in one format, for engines that are right and wrong."""

    traced: Traced
    graph: Graph  # of the reference that rounds as the engine does
    weights: BoundWeights
    options: Mapping[str, Any]
    expected: verify.Expected

    def right(self) -> Session:
        return openvino.build(self.traced.graph, self.options).open(self.weights, self.options)

    def rounds_as_it_should(self) -> Session:
        """Whose errors do not depend on what lay in memory, as those of wrong sessions may."""
        weights = verify.InTypesOf(self.graph, self.weights)
        return reference.build(self.graph, {}).open(weights, {"block_size": 32})

    def check(self, session: Session) -> verify.Check:
        try:
            return self.expected.check(session, layers=6)
        finally:
            session.close()


FORMATS = {
    "f32": (),
    "bf16": ("dtype=bf16",),
    "int8": ("quant=int8",),
    "int4": ("quant=int4",),
    "u8 cache": ("engine.cache_dtype=u8",),
    "all at once": ("dtype=bf16", "quant=int4", "quant.group=128", "engine.cache_dtype=u8"),
}


@pytest.fixture(scope="module", params=list(FORMATS.values()), ids=list(FORMATS))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    recipe = compose("demo", list(request.param)).recipe
    checkpoint = pipeline.fetch(recipe)
    architecture = pipeline.read_architecture(recipe, checkpoint)
    dtype = DType.BF16 if "dtype=bf16" in request.param else DType.F32
    traced = trace_graph(recipe, architecture, dtype)
    exact = trace_graph(recipe, architecture, DType.F32).graph
    folder = tmp_path_factory.mktemp("bound")
    write(pipeline.prove_binding(traced, checkpoint), folder, dtype)
    weights = BoundWeights.open(folder, checkpoint.folder)
    options = pipeline.engine_options(recipe)
    rounding = openvino.CAPABILITIES.rounding(traced.graph, options)
    coarse = None
    if rounding != Rounding(DType.F32):
        coarse = rounded(trace_graph(recipe, architecture, rounding.dtype).graph, rounding)
    expected = verify.Expected(exact, coarse, weights)
    return Built(traced, coarse or exact, weights, options, expected)


def test_an_engine_is_off_by_what_its_rounding_makes(built: Built) -> None:
    check = built.check(built.right())
    assert check.share < 0.75
    if check.rounding == 0:
        assert check.error < verify.EXACT / 20
    else:
        assert 0.8 * check.rounding < check.error < 1.25 * check.rounding < 0.05


def forgets_its_cache(session: Session) -> Session:
    def forget(step: StepInputs) -> StepInputs:
        session.allocate_cache(6)
        return step

    return Changed(session, change_step=forget)


def mixes_up_blocks(session: Session) -> Session:
    def mixed(step: StepInputs) -> StepInputs:
        ordered = np.arange(len(step.block_table), dtype=np.int32)
        return StepInputs(**{**vars(step), "block_table": ordered})

    return Changed(session, change_step=mixed)


def is_one_position_off(session: Session) -> Session:
    def shifted(step: StepInputs) -> StepInputs:
        # All of a sequence by one would change nothing: angles count differences.
        late = np.where(step.positions > 23, step.positions + 1, step.positions)
        return StepInputs(**{**vars(step), "positions": late})

    return Changed(session, change_step=shifted)


@pytest.mark.parametrize(
    ("wrong", "margin"),
    [(forgets_its_cache, 8.0), (mixes_up_blocks, 5.0), (is_one_position_off, 1.5)],
)
def test_wrong_engines_are_refused_with_a_margin(built: Built, wrong: Any, margin: float) -> None:
    """The steps cover chunks, mixed batches and blocks in no order."""
    with pytest.raises(BuildError, match="does not compute") as caught:
        built.check(wrong(built.rounds_as_it_should()))
    found = re.search(r"(\S+) times what rounding explains", str(caught.value))
    assert found
    assert float(found[1]) > margin


@pytest.mark.parametrize("wrong", [forgets_its_cache, mixes_up_blocks])
def test_openvino_used_wrongly_is_refused(built: Built, wrong: Any) -> None:
    with pytest.raises(BuildError, match=r"does not compute|NaN or infinite"):
        built.check(wrong(built.right()))


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


def test_what_is_allowed_follows_each_row_and_has_bounds() -> None:
    assert verify.allowed(np.zeros(3)).tolist() == [verify.EXACT] * 3
    rows = np.array([0.01, 0.01, 0.1])
    of_all = float(np.sqrt(np.square(rows).mean()))
    np.testing.assert_allclose(verify.allowed(rows), [3 * of_all, 3 * of_all, 0.3])
    assert verify.allowed(np.array([0.5])).tolist() == [verify.LARGEST]


def test_a_format_too_coarse_to_tell_is_refused_as_that(demo: tuple[Traced, BoundWeights]) -> None:
    traced, weights = demo
    coarse = rounded(traced.graph, Rounding(DType.F32, cache=DType.I4))
    expected = verify.Expected(traced.graph, coarse, weights)
    session = reference.build(coarse, {}).open(weights, {})
    with pytest.raises(BuildError, match=r"does not suit this checkpoint.*quant=none"):
        expected.check(session, layers=6)


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


def test_options_are_passed_as_mappings(demo: tuple[Traced, BoundWeights]) -> None:
    options: Mapping[str, Any] = pipeline.engine_options(compose("demo").recipe)
    assert options["threads"] >= 1
    assert set(options) == {"threads", "cache_dtype"}
