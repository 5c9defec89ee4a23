"""Pooling gives what sentence-transformers' own module gives."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest

from paddock.runtime.encoders.pooling import MODES, normalized, pool, reads_of

LIVE = all(importlib.util.find_spec(n) for n in ("torch", "sentence_transformers"))


@pytest.mark.skipif(not LIVE, reason="sentence-transformers is not installed (`make parity`)")
@pytest.mark.parametrize("prompt", [0, 3])
@pytest.mark.parametrize("modes", [*[(m,) for m in MODES], ("mean", "max"), ("cls", "lasttoken")])
def test_modes_are_those_of_sentence_transformers(modes: tuple[str, ...], prompt: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from sentence_transformers.sentence_transformer.modules.pooling import Pooling
    random = np.random.default_rng(0)
    lengths = [7, 4, 12]
    hidden = random.standard_normal((3, 12, 5)).astype(np.float32)
    mask = np.arange(12) < np.array(lengths)[:, None]
    module = Pooling(5, modes, include_prompt=prompt == 0)
    expected = module(
        {
            "token_embeddings": torch.tensor(hidden),
            "attention_mask": torch.tensor(mask.astype(np.int64)),
            "prompt_length": prompt,
        }
    )["sentence_embedding"].numpy()
    for rows, length, wanted in zip(hidden, lengths, expected, strict=True):
        given = rows[:length]
        reads = reads_of(modes, without_prompt=prompt > 0)
        given = {"first": given[:1], "last": given[-1:], "all": given}[reads]
        np.testing.assert_allclose(pool(given, modes, prompt), wanted, rtol=1e-5, atol=1e-6)


def test_only_what_is_pooled_is_read() -> None:
    assert reads_of(("cls",)) == "first"
    assert reads_of(("lasttoken",)) == "last"
    assert reads_of(("mean",)) == reads_of(("cls", "lasttoken")) == "all"
    assert reads_of(("cls",), without_prompt=True) == "all"


def test_a_vector_of_zeros_has_no_direction() -> None:
    np.testing.assert_array_equal(normalized(np.zeros(3, np.float32)), np.zeros(3))
    assert np.linalg.norm(normalized(np.array([3, 4], np.float32))) == pytest.approx(1)
