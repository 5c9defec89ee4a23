"""Which tokens may be drawn: top-k, top-p, min-p and typical filters, and the draw itself.

The filters run in transformers' order (`generation/utils.py`, `_get_logits_processor`): top-k,
top-p, min-p, typical, each on the distribution that the one before left. A vocabulary is never
sorted: thresholds are found with partitions, and where few tokens are left the rest happens among
these alone.

Weights are `exp((logit - largest logit) / temperature)`: probabilities without their common
factor, so the likeliest token weighs 1 and no temperature overflows. A weight of 0 is a token
that was filtered out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.sampling.sampling_params import SamplingParams

_BLOCK = 256
"""Tokens whose weights are summed first, when a whole vocabulary is drawn from."""
_CHUNK = 1 << 16
"""Logits worked on at once, so that the intermediate arrays stay in a core's cache."""
_SMALL = 512
"""Sizes under which a sort costs no more than the partitions that would avoid it."""


def draw(
    rows: Sequence[Array],
    peaks: Sequence[np.float32],
    params: Sequence[SamplingParams],
    chances: Sequence[float],
) -> list[int]:
    """One token id of each row.

    rows: f32 [V] logits each, -inf where banned; peaks: their largest values; chances: numbers
    in [0, 1), where in the cumulated distribution (by token id) the drawn token lies. What is
    drawn from a row depends on that row alone, bit for bit.
    """
    drawn = [-1] * len(rows)
    whole = []
    for i, row in enumerate(rows):
        few = _few(row, peaks[i], params[i])
        if few is None:
            whole.append(i)
        else:
            ids, weights = few
            drawn[i] = int(ids[_pick(weights, chances[i])])
    step = max(1, _CHUNK // rows[0].size)
    for start in range(0, len(whole), step):
        some = whole[start : start + step]
        scaled, weights, sums = _weigh(
            [rows[i] for i in some], [peaks[i] for i in some], [params[i] for i in some]
        )
        for j, i in enumerate(some):
            drawn[i] = _draw_from_whole(scaled[j], weights[j], sums[j], params[i], chances[i])
    return drawn


def kept_weights(row: Array, params: SamplingParams) -> Array:
    """Weights f32 or f64 [V] that `draw` gives the tokens of a row of logits f32 [V]."""
    peak = row.max()
    few = _few(row, peak, params)
    if few is not None:
        return _spread(*few, row.size)
    scaled, weights, sums = _weigh([row], [peak], [params])
    ids, kept = _filter_whole(scaled[0], weights[0], sums[0, -1], params)
    return kept if ids is None else _spread(ids, kept, row.size)


def top_ids(row: Array, count: int) -> Array:
    """Ids i64 of the `count` largest of f32 [V], largest first, equal ones by id."""
    if count == 0:
        return np.empty(0, np.int64)
    ids, values = _largest(row, min(count, row.size))
    return ids[np.lexsort((ids, -values))][:count]


def _few(row: Array, peak: np.float32, params: SamplingParams) -> tuple[Array, Array] | None:
    """Ids and filtered weights of the tokens that top-k, or min-p alone, leave.

    None where neither narrows the row down before its weights are known.
    """
    temperature = np.float32(params.temperature)
    if 0 < params.top_k < row.size:
        ids, values = _largest(row, params.top_k)
    elif params.min_p > 0 and params.top_p == 1:
        # A little lower than the threshold that `_filter` applies, for rounding's sake.
        lowest = peak + temperature * np.float32(math.log(params.min_p) - 0.01)
        ids = np.flatnonzero(row >= lowest)
        values = row[ids]
    else:
        return None
    scaled = (values - peak) / temperature
    weights = np.exp(scaled).astype(np.float64)
    return ids, _filter(scaled, weights, params)


def _spread(ids: Array, weights: Array, vocab_size: int) -> Array:
    spread = np.zeros(vocab_size)
    spread[ids] = weights
    return spread


def _weigh(
    rows: Sequence[Array], peaks: Sequence[np.float32], params: Sequence[SamplingParams]
) -> tuple[Array, Array, Array]:
    """Scaled logits and weights f32 [R, V], and cumulated sums of blocks of weights f64 [R, B]."""
    scaled = np.empty((len(rows), rows[0].size), np.float32)
    for i, row in enumerate(rows):
        np.subtract(row, peaks[i], out=scaled[i])
        if params[i].temperature != 1:
            scaled[i] /= np.float32(params[i].temperature)
    weights = np.exp(scaled)
    starts = np.arange(0, scaled.shape[1], _BLOCK)
    sums = np.add.reduceat(weights, starts, axis=1).cumsum(axis=1, dtype=np.float64)
    return scaled, weights, sums


def _draw_from_whole(
    scaled: Array, weights: Array, sums: Array, params: SamplingParams, chance: float
) -> int:
    """A token of f32 [V] with the block sums f64 [B]."""
    if params.top_p == 1 and params.typical_p == 1:
        return _pick_in_blocks(weights, sums, chance)
    ids, weights = _filter_whole(scaled, weights, sums[-1], params)
    if ids is not None:
        return int(ids[_pick(weights, chance)])
    starts = np.arange(0, weights.size, _BLOCK)
    sums = np.add.reduceat(weights, starts).cumsum(dtype=np.float64)
    return _pick_in_blocks(weights, sums, chance)


def _filter_whole(
    scaled: Array, weights: Array, total: float, params: SamplingParams
) -> tuple[Array | None, Array]:
    """Ids and weights that the filters leave of f32 [V]; no ids where too many are left."""
    # Tokens that weigh no more than this are together less than what top-p leaves out.
    lowest = np.float32((1 - params.top_p) * total / weights.size)
    above = weights > lowest
    if np.count_nonzero(above) > weights.size // 8:
        return None, _filter(scaled, weights, params)
    ids = np.flatnonzero(above)
    return ids, _filter(scaled[ids], weights[ids].astype(np.float64), params, total=total)


def _filter(
    scaled: Array, weights: Array, params: SamplingParams, total: float | None = None
) -> Array:
    """Weights [K] with those of tokens outside top-p, min-p and typical set to 0.

    total: the weight of all tokens, where these are only the ones that top-p may keep.
    """
    if params.top_p < 1:
        total = float(weights.sum()) if total is None else total
        weights = weights * _likeliest(weights, params.top_p * total)
    if params.min_p > 0:
        weights = weights * (weights >= params.min_p)
    if params.typical_p < 1:
        weights = weights * _typical(scaled, weights, params.typical_p)
    return weights


def _likeliest(weights: Array, mass: float) -> Array:
    """bool [K]: the fewest, largest weights that add up to `mass`; of equal ones the first."""
    part = weights
    beyond = 0.0  # the weight of what is larger than everything in `part`
    while part.size > _SMALL:
        half = part.size // 2
        part = np.partition(part, half)
        upper = float(part[half:].sum())
        if beyond + upper < mass:
            beyond += upper
            part = part[:half]
        else:
            part = part[half:]
    part = np.sort(part)[::-1]
    sums = part.cumsum(dtype=np.float64)
    last = min(int(sums.searchsorted(mass - beyond)), part.size - 1)
    least = part[last]
    keep = weights >= least
    equal = np.flatnonzero(weights == least)
    if equal.size > 1:
        missing = mass - float(weights[weights > least].sum())
        keep[equal[max(1, math.ceil(missing / float(least))) :]] = False
    return keep


def _typical(scaled: Array, weights: Array, mass: float) -> Array:
    """bool [K]: the tokens of `mass` whose surprise is nearest to the entropy.

    Meister et al. 2022, https://arxiv.org/abs/2202.00666; equally near ones are all kept, as in
    transformers' `TypicalLogitsWarper`.
    """
    total = float(weights.sum())
    surprise = math.log(total) - np.where(weights > 0, scaled, 0)
    entropy = float((weights * surprise).sum()) / total
    distance = np.abs(surprise - np.float32(entropy))

    # Where the tokens no more surprising than twice the entropy weigh enough, all others are
    # farther from it than these: mostly few are left.
    near = np.flatnonzero(weights >= total * math.exp(-2 * entropy))
    enough = near.size < distance.size and float(weights[near].sum()) > mass * total
    order = near if enough else np.arange(distance.size)
    below = 0.0  # the weight of what is nearer than everything in `order`
    while order.size > _SMALL:
        half = order.size // 2
        order = order[distance[order].argpartition(half)]
        nearer = float(weights[order[:half]].sum())
        if below + nearer < mass * total:
            below += nearer
            order = order[half:]
        else:
            order = order[:half]
    order = order[distance[order].argsort()]
    sums = weights[order].cumsum(dtype=np.float64)
    last = min(int(sums.searchsorted(mass * total - below)), order.size - 1)
    keep: Array = distance <= distance[order[last]]
    return keep


def _largest(row: Array, count: int) -> tuple[Array, Array]:
    """Ids, in order, and values of the `count` largest of f32 [V] and all equal to the last.

    The count-th largest of the maxima of many columns is no greater than the count-th largest of
    all, and finding it takes one pass of plain maxima, several times faster than a partition.
    """
    columns = max(512, 4 * count)
    depth = row.size // columns
    if depth >= 2:
        maxima = row[: depth * columns].reshape(depth, columns).max(axis=0)
        ids = np.flatnonzero(row >= np.partition(maxima, columns - count)[columns - count])
        values = row[ids]
    else:
        ids, values = np.arange(row.size), row
    keep = values >= np.partition(values, values.size - count)[values.size - count]
    return ids[keep], values[keep]


def _pick(weights: Array, chance: float) -> int:
    """Index at which the cumulated weights pass `chance` of their sum."""
    return _passed(weights.cumsum(dtype=np.float64), chance)


def _pick_in_blocks(weights: Array, sums: Array, chance: float) -> int:
    """`_pick` of f32 [V], given f64 [B], the cumulated sums of its blocks."""
    block = _passed(sums, chance)
    start = block * _BLOCK
    inside = weights[start : start + _BLOCK].cumsum(dtype=np.float64)
    rest = chance * sums[-1] - (sums[block - 1] if block else 0.0)
    return start + _passed(inside, rest / inside[-1])


def _passed(cumulated: Array, chance: float) -> int:
    """Index of the first of f64 [K] greater than `chance` times the last; never of weight 0."""
    index = int(cumulated.searchsorted(chance * cumulated[-1], side="right"))
    if index < cumulated.size:
        return index
    return int(cumulated.searchsorted(cumulated[-1]))  # chance x sum was rounded up to the sum
