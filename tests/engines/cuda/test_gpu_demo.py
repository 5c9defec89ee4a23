"""The bundled checkpoint through the whole journey on a GPU. Needs a GPU.

Recipe, bound weights, the build's check, the loop that runs ahead, tokens chosen on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paddock import LLM, SamplingParams

pytestmark = pytest.mark.gpu
PROMPTS = [
    "The ls command",
    "A Debian package is",
    "To copy a file, use",
    "The kernel loads",
    "DESCRIPTION\n",
    "A process may",
    "For more information, see",
    "é, ü and 漢字 are",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PADDOCK_HOME", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def texts(engine: str, params: SamplingParams, *overrides: str) -> list[tuple[int, ...]]:
    with LLM("demo", f"engine={engine}", *overrides) as llm:
        return [one.token_ids for one in llm.generate(PROMPTS, params)]


def agreement(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> float:
    """The fraction of tokens up to where texts part."""
    same = total = 0
    for x, y in zip(a, b, strict=True):
        parted = next((i for i, (m, n) in enumerate(zip(x, y, strict=False)) if m != n), len(x))
        same, total = same + parted, total + len(x)
    return same / total


def test_greedy_text_is_the_reference_engines(home: Path) -> None:
    params = SamplingParams(max_tokens=48, temperature=0)
    found = texts("cuda", params, "dtype=f32")
    assert found == texts("reference", params, "dtype=f32")


def test_greedy_text_in_bf16_parts_late_if_at_all(home: Path) -> None:
    params = SamplingParams(max_tokens=48, temperature=0)
    exact = texts("cuda", params, "dtype=f32")
    assert agreement(texts("cuda", params, "dtype=bf16"), exact) > 0.5
    assert agreement(texts("cuda", params, "dtype=bf16", "engine.precision=fp8"), exact) > 0.1


def test_drawn_text_is_the_reference_engines_for_the_same_seed(home: Path) -> None:
    params = SamplingParams(max_tokens=32, temperature=0.8, top_k=40, top_p=0.9, min_p=0.02, seed=7)
    found = texts("cuda", params, "dtype=f32")
    # A draw at the very edge of a token's share may fall the other way.
    assert agreement(found, texts("reference", params, "dtype=f32")) > 0.95


def test_integer_weights(home: Path) -> None:
    params = SamplingParams(max_tokens=32, temperature=0)
    found = texts("cuda", params, "dtype=bf16", "quant=int8")
    assert agreement(found, texts("reference", params, "dtype=f32", "quant=int8")) > 0.5


def test_much_at_once_is_what_each_is_alone(home: Path) -> None:
    """A few hundred requests of all sorts together, cancelled ones among them, and then alone."""
    random = np.random.default_rng(0)
    with LLM("demo", "engine=cuda", "dtype=f32") as llm:
        asked = [
            (
                random.integers(3, 1000, random.integers(1, 60)).tolist(),
                SamplingParams(
                    max_tokens=int(random.integers(1, 40)),
                    temperature=float(random.choice([0.0, 0.9])),
                    top_k=int(random.choice([0, 20])),
                    seed=i,
                    repetition_penalty=float(random.choice([1.0, 1.0, 1.0, 1.2])),
                ),
            )
            for i in range(300)
        ]
        handles = [llm.submit(prompt, params) for prompt, params in asked]
        for handle in handles[::7]:
            handle.cancel()
        together = [handle.result() for handle in handles]
        before = llm.running.session.gpu_memory[0]  # type: ignore[attr-defined]
        for i in (1, 2, 3, 100, 250):
            alone = llm.submit(*asked[i]).result()
            assert alone.sequences[0].token_ids == together[i].sequences[0].token_ids
        assert llm.stats().blocks_held == 0
        assert before - llm.running.session.gpu_memory[0] < 1 << 24  # type: ignore[attr-defined]
