"""A real encoder, all-MiniLM-L6-v2, gives the vectors that sentence-transformers gives."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock import LLM
from paddock.graph import Array
from paddock.recipes.errors import RecipeError
from paddock.runtime.errors import RequestError, RequestTooLarge
from tests import minilm

TEXTS = [
    "Hello world",
    "",
    "a",
    "A paddock is a small field where horses are kept or exercised.",
    "Ein Satz auf Deutsch: Größe, Straße, Äpfel.",
    "日本語のテキスト и русский текст 🙂 émigré",
    "def f(x):\n\treturn x ** 2  # code",
    "[CLS] special [SEP] tokens [MASK] written out [PAD]",
    "   spaces   at both ends   ",
    "word " * 253,
    "word " * 254,  # the limit of 256, with the two special tokens
    "word " * 255,
    "The quick brown fox jumps over the lazy dog. " * 100,
    "supercalifragilisticexpialidocious" * 40,
    *(f"{'An example of some length. ' * (i % 17)}Number {i}." for i in range(60)),
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(minilm.folder())) as llm:
        yield llm


@cache
def expected() -> Array:
    if not all(importlib.util.find_spec(n) for n in ("torch", "sentence_transformers")):
        pytest.skip("sentence-transformers is not installed (`make parity` installs it)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        model: Any = SentenceTransformer(str(minilm.folder()), device="cpu")
        found: Array = model.encode(TEXTS, show_progress_bar=False)
    return found


def closest(found: list[Array], wanted: Array) -> float:
    """The smallest cosine of a vector with what it should be."""
    return min(
        float(f @ w / np.linalg.norm(f) / np.linalg.norm(w))
        for f, w in zip(found, wanted, strict=True)
    )


def test_vectors_are_those_of_sentence_transformers(llm: LLM) -> None:
    found = llm.embed(TEXTS)
    assert closest([e.vector for e in found], expected()) >= 0.9999
    difference = np.abs(np.stack([e.vector for e in found]) - expected()).max()
    assert difference < 1e-5
    assert [e.tokens for e in found[9:12]] == [255, 256, 256]
    assert [e.truncated for e in found[9:12]] == [False, False, True]


def test_the_order_and_the_company_do_not_matter(llm: LLM) -> None:
    order = np.random.default_rng(0).permutation(len(TEXTS))
    found = llm.embed([TEXTS[i] for i in order])
    assert closest([e.vector for e in found], expected()[order]) >= 0.9999
    alone = [llm.embed(text)[0].vector for text in TEXTS[:14]]
    assert closest(alone, expected()[:14]) >= 0.9999


def test_threads_and_coroutines_ask_together(llm: LLM) -> None:
    found: dict[int, Array] = {}

    def ask(i: int) -> None:
        found[i] = llm.embed(TEXTS[i])[0].vector

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert closest([found[i] for i in range(len(TEXTS))], expected()) >= 0.9999

    async def main() -> list[Array]:
        encoder = llm.running.encoder
        answers = await asyncio.gather(*(encoder.aembed([text]) for text in TEXTS))
        return [answer[0].vector for answer in answers]

    assert closest(asyncio.run(main()), expected()) >= 0.9999


def test_scores_are_cosines(llm: LLM) -> None:
    near, far = llm.score([("a dog", "a puppy"), ("a dog", "the stock market")])
    assert 0.5 < near <= 1
    assert far < 0.3


def test_truncation_is_as_asked(llm: LLM) -> None:
    encoder = llm.running.encoder
    text = "first " * 300 + "last " * 300
    start, end = (encoder.embed([text], truncate=side)[0] for side in ("start", "end"))
    assert start.truncated
    assert end.truncated
    assert closest([end.vector], llm.embed("first " * 300)[0].vector[None]) > 0.9999
    assert closest([start.vector], llm.embed("last " * 300)[0].vector[None]) > 0.9999
    with pytest.raises(RequestTooLarge, match="602 tokens, the model takes 256"):
        encoder.embed([text], truncate="never")


def test_token_ids_and_fewer_dimensions(llm: LLM) -> None:
    (whole,) = llm.embed("Hello world")
    (ids,) = llm.embed([[101, 7592, 2088, 102]])
    assert closest([ids.vector], whole.vector[None]) > 0.9999
    (short,) = llm.embed("Hello world", dimensions=10)
    wanted = whole.vector[:10] / np.linalg.norm(whole.vector[:10])
    np.testing.assert_allclose(short.vector, wanted, rtol=1e-5)
    with pytest.raises(RequestError, match="dimensions is 385, the model's vectors have 384"):
        llm.embed("x", dimensions=385)


def test_what_it_cannot_do_is_said(llm: LLM) -> None:
    with pytest.raises(RecipeError, match=r"gives vectors \(task embed\), it cannot generate"):
        llm.generate("Hello")
    with pytest.raises(RequestError, match="has no labels; ask it to embed"):
        llm.classify("Hello")
    with pytest.raises(RequestError, match="no prompt 'query'; it has none"):
        llm.embed("Hello", prompt_name="query")


@pytest.mark.parametrize("overrides", [("quant=int8",), ("engine=reference",)])
def test_other_forms_of_it(overrides: tuple[str, ...]) -> None:
    with LLM(str(minilm.folder()), *overrides) as llm:
        found = [e.vector for e in llm.embed(TEXTS[:12])]
    bound = 0.98 if "quant=int8" in overrides else 0.9999
    assert closest(found, expected()[:12]) >= bound


def test_the_recipe_says_otherwise(tmp_path: Path) -> None:
    """Pooling and normalisation of the recipe come before those of the files."""
    folder = tmp_path / "plain"
    shutil.copytree(minilm.folder(), folder)
    with LLM(str(folder), "pooling=cls", "normalize=false") as llm:
        (cls,) = llm.embed("Hello world")
    assert abs(np.linalg.norm(cls.vector) - 1) > 0.1
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    with LLM(str(folder)) as llm:
        (mean,) = llm.embed("Hello world")
        assert llm.running.encoder.max_tokens == 512
    assert closest([mean.vector], expected()[:1]) >= 0.9999
    assert abs(np.linalg.norm(mean.vector) - 1) > 0.1
