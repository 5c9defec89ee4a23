"""Choosing tokens: one definition of each step, written out plainly, against the fast one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddock.graph.dtype import Array
from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.sampler import (
    LogitsError,
    SampledToken,
    SequenceSampler,
    prompt_logprobs,
    sample,
)
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.sampling.token_filters import kept_weights, top_ids

EVERYTHING: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.9,
    "min_p": 0.02,
    "typical_p": 0.95,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "logit_bias": {3: 2.0, 9: -5.0},
    "logprobs": 5,
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0, "logprobs": 3},
    {"temperature": 0, "repetition_penalty": 1.3, "logprobs": 0},
    {},
    {"temperature": 0.7},
    {"top_k": 1},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"temperature": 1.5, "top_p": 0.8},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"top_k": 40, "min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.05},
    {"typical_p": 0.5},
    {"top_p": 0.9, "typical_p": 0.9},
    {"presence_penalty": -1.0, "frequency_penalty": 0.7},
    {"min_tokens": 200, "stop_token_ids": (4,)},
    EVERYTHING,
    {**EVERYTHING, "top_k": 0},
)


def make_logits(rows: int, vocab_size: int, *, spread: float, seed: int = 0) -> Array:
    """Normal logits f32; small spreads make flat distributions, large ones peaked."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((rows, vocab_size)) * spread).astype(np.float32)


def make_sampler(
    params: SamplingParams,
    vocab_size: int,
    *,
    prompt: Sequence[int] = (3, 4, 5, 5),
    output: Sequence[int] = (),
    **options: Any,
) -> SequenceSampler:
    sampler = SequenceSampler(params, prompt_token_ids=prompt, vocab_size=vocab_size, **options)
    for token in output:
        sampler.append(token)
    return sampler


def adjusted(sampler: SequenceSampler, row: Array) -> Array:
    row = row.copy()
    sampler.adjust(row)
    return row


def probabilities(row: Array, params: SamplingParams) -> Array:
    """What the sampler draws from, f64 [V], adding up to 1."""
    weights = kept_weights(row, params).astype(np.float64)
    result: Array = weights / weights.sum()
    return result


def by_definition(row: Array, params: SamplingParams) -> Array:
    """The same in f64, with whole sorts: top-k, top-p, min-p, typical, renormalised each time."""
    scaled = row.astype(np.float64) / params.temperature
    if 0 < params.top_k < row.size:
        scaled = np.where(scaled >= np.sort(scaled)[-params.top_k], scaled, -np.inf)
    p = softmax(scaled)
    if params.top_p < 1:
        order = np.lexsort((np.arange(p.size), -p))
        before = np.concatenate([[0], p[order].cumsum()[:-1]])
        p[order[before >= params.top_p]] = 0
    if params.min_p > 0:
        p[p < params.min_p * p.max()] = 0
    p /= p.sum()
    if params.typical_p < 1:
        possible = np.flatnonzero(p)
        surprise = -np.log(p[possible])
        distance = np.abs(surprise - (p[possible] * surprise).sum())
        order = np.argsort(distance)
        reached = min(
            int((p[possible[order]].cumsum() < params.typical_p).sum()), possible.size - 1
        )
        p[possible[distance > distance[order[reached]]]] = 0
        p /= p.sum()
    return p


def softmax(scaled: Array) -> Array:
    weights = np.exp(scaled - scaled.max())
    result: Array = weights / weights.sum()
    return result


def assert_same_distribution(found: Array, expected: Array) -> None:
    """The same tokens, but for one at the edge of a filter where rounding decides."""
    different = np.flatnonzero((found > 0) != (expected > 0))
    assert different.size <= 1
    if different.size == 0:
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


# --- the filters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab_size", "combinations"), [(7, 144), (600, 144), (40_000, 30)])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_filters_follow_their_definitions(
    vocab_size: int, combinations: int, spread: float
) -> None:
    row = make_logits(1, vocab_size, spread=spread)[0]
    every = list(product((0, 1, 5, 300), (1.0, 0.9, 0.3), (0.0, 0.05), (1.0, 0.9, 0.2), (1.0, 0.6)))
    for top_k, top_p, min_p, typical_p, temperature in every[:: len(every) // combinations]:
        params = SamplingParams(
            top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, temperature=temperature
        )
        assert_same_distribution(probabilities(row, params), by_definition(row, params))


few_values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 2.5, -3.0, -math.inf])


@settings(max_examples=300, deadline=None)
@given(
    row=st.lists(few_values, min_size=1, max_size=40).filter(lambda row: max(row) > -math.inf),
    top_k=st.sampled_from([0, 1, 2, 5]),
    top_p=st.sampled_from([1.0, 0.75, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_filters_with_equal_and_impossible_tokens(
    row: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    found = probabilities(np.array(row, np.float32), params)
    assert_same_distribution(found, by_definition(np.array(row), params))


def test_top_p_keeps_the_first_of_equal_tokens() -> None:
    row = np.log(np.array([0.125, 0.25, 0.25, 0.25, 0.125], np.float32))
    kept = [
        np.flatnonzero(kept_weights(row, SamplingParams(top_p=p))).tolist()
        for p in (0.2, 0.3, 0.7, 0.8)
    ]
    assert kept == [[1], [1, 2], [1, 2, 3], [0, 1, 2, 3]]


def test_top_k_keeps_all_tokens_as_likely_as_the_last() -> None:
    row = np.array([1, 5, 5, 5, 0, 9], np.float32)
    assert np.flatnonzero(kept_weights(row, SamplingParams(top_k=2))).tolist() == [1, 2, 3, 5]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=3000),
    st.integers(0, 1500),
)
def test_top_ids_are_those_of_a_stable_sort(values: list[int], count: int) -> None:
    row = np.array(values, np.float32)
    assert top_ids(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()


def test_low_temperatures_do_not_overflow() -> None:
    row = np.array([1e30, -1e30, 0], np.float32)
    sampler = make_sampler(SamplingParams(temperature=1e-5, top_p=0.9), 3)
    assert sample(row[None], [sampler])[0].token_id == 0


# --- against transformers ------------------------------------------------------------------------


def processors(
    params: SamplingParams, *, prompt_length: int, eos: int, bad: list[list[int]]
) -> Any:
    """The processors of `GenerationMixin._get_logits_processor`, in its order."""
    from transformers.generation import logits_process as lp

    chain = lp.LogitsProcessorList()
    if params.logit_bias:
        biases = [[[id_], bias] for id_, bias in params.logit_bias.items()]
        chain.append(lp.SequenceBiasLogitsProcessor(biases))
    if params.repetition_penalty != 1:
        chain.append(lp.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if bad:
        chain.append(lp.NoBadWordsLogitsProcessor(bad, eos))
    if params.min_tokens:
        chain.append(lp.MinNewTokensLengthLogitsProcessor(prompt_length, params.min_tokens, eos))
    if params.temperature != 1:
        chain.append(lp.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(lp.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(lp.TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        chain.append(lp.MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        chain.append(lp.TypicalLogitsWarper(params.typical_p))
    return chain


@pytest.mark.parametrize("vocab_size", [100, 4096, 32_000])
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_distributions_are_those_of_transformers(vocab_size: int, spread: float) -> None:
    torch = pytest.importorskip("torch", reason="compares with transformers, live")
    pytest.importorskip("transformers", reason="compares with transformers, live")
    generator = np.random.default_rng(7)
    prompt = generator.integers(0, vocab_size, 30).tolist()
    output = generator.integers(0, vocab_size, 12).tolist()
    eos = 2
    bad = [[11], [output[-1], 12], [prompt[-1], *output, 13], [99, 14]]
    row = make_logits(1, vocab_size, spread=spread, seed=3)[0]
    every = list(
        product(
            (1.0, 0.6),
            (0, 40),
            (1.0, 0.9),
            (0.0, 0.05),
            (1.0, 0.8),
            (1.0, 1.3),
            ({}, {5: 4.0}),
            (0, 20),
        )
    )
    some = [every[i] for i in generator.permutation(len(every))[: 256 if vocab_size == 100 else 40]]
    for temperature, top_k, top_p, min_p, typical_p, repetition, bias, min_tokens in some:
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repetition_penalty=repetition,
            logit_bias=bias,
            min_tokens=min_tokens,
        )
        chain = processors(params, prompt_length=len(prompt), eos=eos, bad=bad)
        sampler = make_sampler(
            params,
            vocab_size,
            prompt=prompt,
            output=output,
            eos_token_ids={eos},
            bad_words_token_ids=bad,
        )
        scores = chain(torch.tensor([prompt + output]), torch.from_numpy(row[None].copy()))
        expected = scores.softmax(dim=-1)[0].double().numpy()
        found = probabilities(adjusted(sampler, row), params)
        np.testing.assert_array_equal(found > 0, expected > 0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


# --- penalties, bias, bans -----------------------------------------------------------------------


def test_penalties_count_what_they_should() -> None:
    row = np.array([1, 2, -1, 4, 0.5, -2, 3, 1], np.float32)
    params = SamplingParams(
        repetition_penalty=2, presence_penalty=0.25, frequency_penalty=0.5, logit_bias={1: 1.5}
    )
    sampler = make_sampler(params, 8, prompt=[0, 2, 2], output=[3, 3, 5])
    assert adjusted(sampler, row).tolist() == [
        1 / 2,  # in the prompt: repetition only
        2 + 1.5,
        -1 * 2,
        4 / 2 - 2 * 0.5 - 0.25,  # twice in the output
        0.5,
        -2 * 2 - 0.5 - 0.25,
        3,
        1,
    ]


def test_the_bias_comes_before_the_repetition_penalty() -> None:
    params = SamplingParams(repetition_penalty=2, logit_bias={0: 3})
    sampler = make_sampler(params, 2, prompt=[0])
    assert adjusted(sampler, np.array([-1, 0], np.float32)).tolist() == [1, 0]


def test_many_tokens_are_tallied() -> None:
    generator = np.random.default_rng(0)
    output = generator.integers(0, 50, 400).tolist()
    sampler = make_sampler(SamplingParams(frequency_penalty=1), 60, output=output)
    expected = -np.bincount(output, minlength=60).astype(np.float32)
    np.testing.assert_array_equal(adjusted(sampler, np.zeros(60, np.float32)), expected)


def test_prompt_tokens_outside_the_models_vocabulary_do_not_matter() -> None:
    params = SamplingParams(repetition_penalty=2)
    sampler = make_sampler(params, 4, prompt=[1, 9], bad_words_token_ids=[[9], [1, 2], [1, 9]])
    assert adjusted(sampler, np.ones(4, np.float32)).tolist() == [1, 1 / 2, 1, 1]


def test_ends_are_masked_until_min_tokens() -> None:
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(1,), logit_bias={3: 0.5})
    sampler = make_sampler(params, 4, eos_token_ids={0, 77})
    row = np.array([[9, 8, 7, 6]], np.float32)
    tokens = []
    for _ in range(3):
        token = sample(row, [sampler])[0].token_id
        sampler.append(token)
        tokens.append(token)
    assert tokens == [2, 2, 0]


def test_bad_words_ban_their_last_token_after_their_first_ones() -> None:
    words = [[5], [1, 2, 3], [2, 6], [4, 4]]

    def banned(prompt: list[int], output: list[int]) -> list[int]:
        sampler = make_sampler(
            SamplingParams(), 8, prompt=prompt, output=output, bad_words_token_ids=words
        )
        return np.flatnonzero(np.isneginf(adjusted(sampler, np.zeros(8, np.float32)))).tolist()

    assert banned([], []) == [5]
    assert banned([1, 2], []) == [3, 5, 6]
    assert banned([1], [2]) == [3, 5, 6]  # begun in the prompt
    assert banned([7], [2]) == [5, 6]
    assert banned([1, 2], [7]) == [5]
    assert banned([4], [4]) == [4, 5]


def test_a_row_is_only_copied_where_it_has_to_be_changed() -> None:
    plain = make_sampler(SamplingParams(temperature=0), 8)
    assert not plain.adjusts
    waiting = make_sampler(SamplingParams(frequency_penalty=1), 8)
    assert not waiting.adjusts
    waiting.append(3)
    assert waiting.adjusts
    word = make_sampler(SamplingParams(), 8, prompt=[1], bad_words_token_ids=[[2, 3]])
    assert not word.adjusts
    word.append(2)
    assert word.adjusts


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(RequestError, match=r"logit_bias: token id 8 .* 8 tokens"):
        make_sampler(SamplingParams(logit_bias={8: 1}), 8)
    with pytest.raises(RequestError, match="stop_token_ids: token id 9"):
        make_sampler(SamplingParams(stop_token_ids=(1, 9)), 8)


# --- drawing -------------------------------------------------------------------------------------


def chi_square_bound(degrees: int) -> float:
    """The 99.99th percentile of chi-square, by Wilson and Hilferty's approximation."""
    scale = 2 / (9 * degrees)
    return float(degrees * (1 - scale + 3.719 * math.sqrt(scale)) ** 3)


@pytest.mark.parametrize(
    ("vocab_size", "values"),
    [
        (40, {}),
        (700, {}),  # more than two blocks
        (700, {"top_k": 12}),
        (700, {"top_p": 0.9}),
        (700, {"min_p": 0.2, "temperature": 1.3}),
        (2000, {"top_p": 0.99, "temperature": 3.0}),  # too many left to be gathered
        (700, {"typical_p": 0.6}),
        (700, {"repetition_penalty": 1.5, "presence_penalty": 1.0, "top_k": 30}),
    ],
)
def test_draws_have_the_distribution(vocab_size: int, values: dict[str, Any]) -> None:
    draws = 20_000
    row = make_logits(1, vocab_size, spread=2.0, seed=5)
    params = SamplingParams(**values, seed=11)
    sampler = make_sampler(params, vocab_size, output=[1, 2])
    expected = by_definition(adjusted(sampler, row[0]), params) * draws
    counts = np.zeros(vocab_size)
    # `append` would change the penalties: so many sequences, each with its first draw.
    batch = [make_sampler(params, vocab_size, output=[1, 2], index=index) for index in range(500)]
    rows = np.repeat(row, len(batch), axis=0)
    for _ in range(draws // len(batch)):
        for sampler, token in zip(batch, sample(rows, batch), strict=True):
            counts[token.token_id] += 1
            sampler._chance = None
    assert counts[expected == 0].sum() == 0
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    use = wanted > 0
    statistic = float((((observed - wanted) ** 2)[use] / wanted[use]).sum())
    assert statistic < chi_square_bound(int(use.sum()) - 1)


def test_the_same_seed_gives_the_same_tokens_whatever_the_process() -> None:
    row = make_logits(1, 50, spread=1.0)

    def tokens(seed: int | None, index: int) -> list[int]:
        sampler = make_sampler(SamplingParams(seed=seed), 50, index=index)
        made = []
        for _ in range(8):
            made.append(sample(row, [sampler])[0].token_id)
            sampler.append(made[-1])
        return made

    assert tokens(5, 0) == tokens(5, 0)
    assert tokens(5, 0) != tokens(5, 1)
    assert tokens(5, 0) != tokens(6, 0)
    assert tokens(None, 0) != tokens(None, 0)
    assert tokens(-1, 0) == tokens(2**64 - 1, 0)
    # NumPy's SeedSequence and PCG64 are documented to stay as they are.
    chances = np.random.PCG64(np.random.SeedSequence(5, spawn_key=(0,))).random_raw(2)
    sampler = make_sampler(SamplingParams(seed=5), 50)
    for raw in chances.tolist():
        assert sampler.chance() == (raw >> 11) / 2**53
        sampler.append(0)


def test_the_global_random_state_plays_no_part() -> None:
    row = make_logits(1, 50, spread=1.0)
    sampler = make_sampler(SamplingParams(seed=1), 50)
    before = sample(row, [sampler])
    np.random.seed(0)
    state = np.random.get_state(legacy=False)
    assert sample(row, [sampler]) == before
    assert str(np.random.get_state(legacy=False)) == str(state)


def test_sampling_again_without_appending_gives_the_same() -> None:
    rows = make_logits(2, 50, spread=1.0)
    batch = [make_sampler(SamplingParams(seed=seed), 50) for seed in (1, 2)]
    assert sample(rows, batch) == sample(rows, batch)


def test_the_last_possible_chance_draws_a_possible_token() -> None:
    row = np.full(600, -np.inf, np.float32)
    row[[3, 300]] = 1.0
    for values in ({}, {"top_k": 5}, {"top_p": 0.99}):
        sampler = make_sampler(SamplingParams(**values), 600)
        sampler._chance = math.nextafter(1, 0)
        assert sample(row[None], [sampler])[0].token_id == 300
        sampler._chance = 0.0
        assert sample(row[None], [sampler])[0].token_id == 3


def test_chances_at_the_edges_of_blocks_draw_possible_tokens() -> None:
    row = make_logits(1, 40 * 256, spread=1.0)[0]
    row.reshape(40, 256)[:, 200:] = -np.inf
    row.reshape(40, 256)[:, :3] = -np.inf
    weights = np.exp(row - row.max()).reshape(40, 256)
    sums = np.add.reduceat(weights.ravel(), np.arange(0, row.size, 256)).cumsum(dtype=np.float64)
    edges = sums / sums[-1]
    for chance in (*edges, *np.nextafter(edges, 0)):
        sampler = make_sampler(SamplingParams(), row.size)
        sampler._chance = min(float(chance), math.nextafter(1, 0))
        assert np.isfinite(row[sample(row[None], [sampler])[0].token_id])


# --- batches -------------------------------------------------------------------------------------


def assert_bits_equal(left: SampledToken, right: SampledToken) -> None:
    assert left == right
    if left.logprob is not None and right.logprob is not None:
        assert left.logprob.hex() == right.logprob.hex()


@pytest.mark.parametrize("vocab_size", [37, 1000, 32_003])
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_a_rows_result_does_not_depend_on_the_others(vocab_size: int, spread: float) -> None:
    generator = np.random.default_rng(0)
    rows = make_logits(2 * len(SETTINGS), vocab_size, spread=spread)

    def batch() -> list[SequenceSampler]:
        return [
            make_sampler(
                SamplingParams(**values, seed=i),
                vocab_size,
                prompt=[1, 7, 7],
                output=[2, i % 30],
                eos_token_ids={0},
                bad_words_token_ids=[[5], [i % 30, 6]],
                index=i,
            )
            for i, values in enumerate((*SETTINGS, *reversed(SETTINGS)))
        ]

    together = sample(rows, batch())
    for i, sampler in enumerate(batch()):
        assert_bits_equal(sample(rows[i : i + 1], [sampler])[0], together[i])
    for _ in range(3):
        some = generator.permutation(len(together))[: generator.integers(2, len(together))]
        samplers = batch()
        mixed = sample(rows[some], [samplers[i] for i in some])
        for i, token in zip(some, mixed, strict=True):
            assert_bits_equal(token, together[i])


def test_logits_are_left_as_they_are() -> None:
    rows = make_logits(len(SETTINGS), 300, spread=3.0)
    rows.flags.writeable = False
    samplers = [make_sampler(SamplingParams(**values), 300, output=[1]) for values in SETTINGS]
    before = rows.copy()
    sample(rows, samplers)
    np.testing.assert_array_equal(rows, before)


def test_greedy_takes_the_first_of_equal_tokens() -> None:
    rows = np.array([[1, 3, 3], [5, 0, 5]], np.float32)
    samplers = [make_sampler(SamplingParams(temperature=0), 3) for _ in rows]
    assert [token.token_id for token in sample(rows, samplers)] == [1, 0]


def test_an_empty_batch_yields_nothing() -> None:
    assert sample(np.empty((0, 5), np.float32), []) == []


def test_a_batch_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(2, 5\) for 1 sequences of vocabulary \[5\]"):
        sample(np.zeros((2, 5), np.float32), [make_sampler(SamplingParams(), 5)])
    with pytest.raises(ValueError, match=r"vocabulary \[6\]"):
        sample(np.zeros((1, 5), np.float32), [make_sampler(SamplingParams(), 6)])


@pytest.mark.parametrize("values", [{}, {"temperature": 0}, EVERYTHING])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_logits_are_named_and_harm_nobody(values: dict[str, Any], broken: float) -> None:
    rows = make_logits(4, 100, spread=1.0)
    samplers = [
        make_sampler(SamplingParams(**values, seed=i), 100, name=f"request-{i}") for i in range(4)
    ]
    expected = sample(rows, samplers)
    rows[1, 17] = rows[2, 5] = broken
    named = r"^request-1: .*\(first at token id 17\).* 1 more"
    with pytest.raises(LogitsError, match=named) as error:
        sample(rows, samplers)
    assert error.value.rows == (1, 2)
    assert sample(rows[[0, 3]], [samplers[0], samplers[3]]) == [expected[0], expected[3]]


def test_a_row_with_every_token_banned_is_named() -> None:
    row = np.full((1, 3), -np.inf, np.float32)
    with pytest.raises(LogitsError, match="sequence 0: every token is banned"):
        sample(row, [make_sampler(SamplingParams(), 3)])
    sampler = make_sampler(
        SamplingParams(), 2, prompt=[], bad_words_token_ids=[[0], [1]], name="the request"
    )
    with pytest.raises(LogitsError, match="the request: every token is banned"):
        sample(np.zeros((1, 2), np.float32), [sampler])


# --- log-probabilities ---------------------------------------------------------------------------


def log_softmax(row: Array) -> Array:
    wide = row.astype(np.float64)
    result: Array = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    return result


@pytest.mark.parametrize("vocab_size", [5, 1000, 32_000])
def test_logprobs_are_of_the_models_own_distribution(vocab_size: int) -> None:
    rows = make_logits(3, vocab_size, spread=4.0)
    params = SamplingParams(**(EVERYTHING | {"logit_bias": {3: 100.0}, "logprobs": 4}))
    samplers = [make_sampler(params, vocab_size, output=[1, 1]) for _ in rows]
    for row, token in zip(rows, sample(rows, samplers), strict=True):
        expected = log_softmax(row)
        assert token.logprob == pytest.approx(expected[token.token_id], abs=1e-5)
        best = np.argsort(-expected, kind="stable")[:4]
        assert [id_ for id_, _ in token.top_logprobs] == best.tolist()
        assert [p for _, p in token.top_logprobs] == pytest.approx(expected[best], abs=1e-5)


def test_logprobs_are_reported_where_asked_for() -> None:
    rows = make_logits(3, 50, spread=1.0)
    samplers = [
        make_sampler(SamplingParams(temperature=0, logprobs=count), 50) for count in (None, 0, 2)
    ]
    nothing, own, two = sample(rows, samplers)
    assert (nothing.logprob, nothing.top_logprobs) == (None, ())
    assert own.logprob is not None
    assert own.top_logprobs == ()
    assert two.top_logprobs[0] == (two.token_id, two.logprob)
    assert len(two.top_logprobs) == 2


def test_prompt_logprobs() -> None:
    rows = make_logits(4, 300, spread=2.0)
    following = np.array([7, 299, 0, 7])
    for row, next_id, token in zip(
        rows, following.tolist(), prompt_logprobs(rows, following, 3), strict=True
    ):
        expected = log_softmax(row)
        assert token.token_id == next_id
        assert token.logprob == pytest.approx(expected[next_id], abs=1e-5)
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0][1] == pytest.approx(expected.max(), abs=1e-5)
    rows[2, 1] = np.nan
    with pytest.raises(LogitsError, match=r"the prompt: .* 1 NaN"):
        prompt_logprobs(rows, following, 3)
