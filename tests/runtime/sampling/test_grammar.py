"""Constraints alone: masks, copies, ends, and threads that meet."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from paddock.recipes.pipeline import DEMO
from paddock.runtime.sampling.constraint import ConstraintError
from paddock.runtime.sampling.grammar import GuidanceGrammars
from paddock.runtime.sampling.sampler import LogitsError, SequenceSampler, sample
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.sampling.structured_outputs import StructuredOutputs
from paddock.runtime.text.tokenizer import Tokenizer

VOCAB = 4100  # the model's is padded beyond the tokenizer's 4096


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Iterator[GuidanceGrammars]:
    made = GuidanceGrammars(tokenizer, VOCAB)
    yield made
    made.close()


def test_a_mask_allows_just_the_tokens_that_may_follow(
    tokenizer: Tokenizer, grammars: GuidanceGrammars
) -> None:
    constraint = grammars.constraint(StructuredOutputs(choice=("list", "ls")))
    for ids in ([], tokenizer.encode("l", add_special_tokens=False)):
        for token in ids:
            constraint.accept(token)
        begun = tokenizer.decode(ids)
        allowed = constraint.allowed()
        assert allowed.shape == (VOCAB,)
        found = {tokenizer.token_bytes(int(i)).decode() for i in np.flatnonzero(allowed)}
        rests = {word[len(begun) :] for word in ("list", "ls")}
        assert found
        assert all(any(rest.startswith(token) for rest in rests) for token in found)
        assert not allowed[4096:].any()


def test_what_does_not_fit_is_an_error(tokenizer: Tokenizer, grammars: GuidanceGrammars) -> None:
    constraint = grammars.constraint(StructuredOutputs(choice=("yes",)))
    [wrong] = tokenizer.encode("no", add_special_tokens=False)
    with pytest.raises(ConstraintError, match="does not fit"):
        constraint.accept(wrong)


def test_copies_go_their_own_ways(tokenizer: Tokenizer, grammars: GuidanceGrammars) -> None:
    first = grammars.constraint(StructuredOutputs(regex="a*b"))
    [a] = tokenizer.encode("a", add_special_tokens=False)
    [b] = tokenizer.encode("b", add_special_tokens=False)
    first.accept(a)
    second = first.copy()
    second.accept(b)
    assert second.finished
    assert not first.finished
    assert first.allowed()[a]


def test_ends_are_allowed_where_the_text_may_end(
    tokenizer: Tokenizer, grammars: GuidanceGrammars
) -> None:
    constraint = grammars.constraint(StructuredOutputs(regex="ab?"))
    [end] = tokenizer.eos_token_ids
    assert not constraint.allowed()[end]
    [a] = tokenizer.encode("a", add_special_tokens=False)
    constraint.accept(a)
    assert constraint.allowed()[end]
    constraint.accept(end)
    assert constraint.finished


def test_many_sequences_at_once(tokenizer: Tokenizer, grammars: GuidanceGrammars) -> None:
    """Each constraint is one thread's, while the masks of all are made in another."""
    failures: list[Exception] = []

    def follow(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(5):
                constraint = grammars.constraint(StructuredOutputs(regex="[a-z]{3,30}!"))
                text: list[int] = []
                while not constraint.finished:
                    token = int(rng.choice(np.flatnonzero(constraint.allowed())))
                    constraint.accept(token)
                    assert constraint.finished in (True, False)
                    text.append(token)
                assert tokenizer.decode(text).endswith("!")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=follow, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Broken:
    """A constraint that fails on its way."""

    finished = False

    def restrict(self, row: np.ndarray) -> None:
        raise ConstraintError("it fails")

    def accept(self, token_id: int) -> None:
        pass

    def copy(self) -> Broken:
        return self


def test_a_constraint_that_fails_ends_its_own_row_alone() -> None:
    samplers = [
        SequenceSampler(SamplingParams(temperature=0.0), prompt_token_ids=[0], vocab_size=5),
        SequenceSampler(
            SamplingParams(temperature=0.0),
            prompt_token_ids=[0],
            vocab_size=5,
            constraint=Broken(),
        ),
    ]
    with pytest.raises(LogitsError, match="it fails") as caught:
        sample(np.zeros((2, 5), np.float32), samplers)
    assert caught.value.rows == (1,)


def test_the_sampler_takes_what_is_allowed(
    tokenizer: Tokenizer, grammars: GuidanceGrammars
) -> None:
    constraint = grammars.constraint(StructuredOutputs(choice=("yes", "no")))
    sampler = SequenceSampler(
        SamplingParams(temperature=1.0, seed=1),
        prompt_token_ids=[0],
        vocab_size=VOCAB,
        constraint=constraint,
    )
    logits = np.random.default_rng(0).normal(size=(1, VOCAB)).astype(np.float32)
    ids: list[int] = []
    while not sampler.complete:
        [token] = sample(logits, [sampler])
        sampler.append(token.token_id)
        ids.append(token.token_id)
    assert tokenizer.decode(ids) in ("yes", "no")
