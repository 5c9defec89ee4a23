"""Rotary frequencies, with the scalings by which models reach beyond the context they began with.

Field names are those of `rope_parameters` in config.json.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from paddock.graph import Array, GraphError, Module, Tensor
from paddock.graph import ops as F
from paddock.layers.step import Step


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """What `rope_parameters` says. Fields that a type does not use stay None.

    Raises `GraphError` for a number with which the type has no meaning.
    """

    rope_theta: float = 10_000.0
    rope_type: str = "default"
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    short_mscale: float | None = None
    long_mscale: float | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ROTARY_TYPES:
            raise GraphError(f"rope_type {self.rope_type!r} is none of {', '.join(ROTARY_TYPES)}")
        for name in REQUIRED[self.rope_type]:
            if getattr(self, name) is None:
                raise GraphError(f"rope_type {self.rope_type!r} needs {name!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            for number in numbers:
                if isinstance(number, str | bool) or number is None:
                    continue
                if not 0 < number < math.inf:
                    raise GraphError(f"{field.name} is {number}, expected a finite number above 0")
        if self.rope_theta <= 1:
            raise GraphError(f"rope_theta is {self.rope_theta}, expected a number above 1")
        if self.partial_rotary_factor > 1:
            raise GraphError(f"partial_rotary_factor is {self.partial_rotary_factor}, above 1")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise GraphError(f"low_freq_factor {low} is not below high_freq_factor {high}")

    def __str__(self) -> str:
        """The fields that are set, e.g. `default rope_theta=10000`."""
        told = [self.rope_type, f"rope_theta={self.rope_theta:g}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default or field.name in ("rope_type", "rope_theta"):
                continue
            if isinstance(value, tuple):
                value = f"({len(value)} numbers)"
            told.append(f"{field.name}={value}")
        return " ".join(told)


class Rotary(Module):
    """Turns queries and keys by their positions."""

    def __init__(self, head_dim: int, scaling: RotaryScaling, *, interleaved: bool = False) -> None:
        self.head_dim, self.scaling, self.interleaved = head_dim, scaling, interleaved
        dim = rotated(scaling, head_dim)
        if dim < 2 or dim % 2:
            raise GraphError(
                f"{dim} elements of a head of {head_dim} turn: expected an even number"
            )
        if scaling.rope_type == "dynamic" and dim == 2:
            raise GraphError("rope_type 'dynamic' needs more than one pair of elements to turn")
        for name in ("short_factor", "long_factor"):
            factors = getattr(scaling, name)
            if factors is not None and len(factors) != dim // 2:
                raise GraphError(f"{name} has {len(factors)} numbers for {dim // 2} pairs")

    def __repr__(self) -> str:
        layout = " interleaved" if self.interleaved else ""
        return f"Rotary head_dim={self.head_dim}{layout} {self.scaling}"

    def forward(self, q: Tensor, k: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """q: [tokens, heads, head_dim], k: [tokens, kv heads, head_dim] -> both, turned."""
        inverse, factor = frequencies(self.scaling, self.head_dim, step.max_context)
        cos, sin = F.rotary_angles(step.positions, inverse, factor)
        q = F.rotary(q, cos, sin, interleaved=self.interleaved)
        return q, F.rotary(k, cos, sin, interleaved=self.interleaved)


class SectionedRotary(Rotary):
    """Neighbouring pairs turn by the same of three positions: time, then rows, then columns.

    Wang et al. 2024, arxiv.org/abs/2409.12191, section 2.1; `sections` are how many turn by each.
    """

    def __init__(
        self, head_dim: int, scaling: RotaryScaling, sections: tuple[int, int, int]
    ) -> None:
        super().__init__(head_dim, scaling)
        pairs = rotated(scaling, head_dim) // 2
        if min(sections) < 1 or sum(sections) != pairs:
            raise GraphError(f"mrope_section {list(sections)} does not divide {pairs} pairs in 3")
        self.sections = sections

    def forward(self, q: Tensor, k: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        inverse, factor = frequencies(self.scaling, self.head_dim, step.max_context)
        of_time, of_rows, _ = self.sections
        cut = [0, of_time, of_time + of_rows, len(inverse)]
        own = [inverse[begin:end] for begin, end in itertools.pairwise(cut)]
        return _turned_by_several(q, k, step.grid_positions, own, factor)


class AxialRotary(Module):
    """Half of the pairs turn by a patch's row, half by its column, each as in half a head."""

    def __init__(self, head_dim: int, theta: float) -> None:
        if head_dim % 4:
            raise GraphError(f"a head of {head_dim} has no halves of whole pairs")
        self.head_dim, self.theta = head_dim, theta

    def forward(self, q: Tensor, k: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """q, k: [patches, heads, head_dim] -> both, turned."""
        inverse = tuple(map(float, 1.0 / _wavelengths(self.theta, self.head_dim // 2)))
        return _turned_by_several(q, k, step.patch_places, [inverse, inverse], 1.0)


def _turned_by_several(
    q: Tensor,
    k: Tensor,
    positions: Sequence[Tensor],
    frequencies: Sequence[tuple[float, ...]],
    factor: float,
) -> tuple[Tensor, Tensor]:
    """The first pairs by the first positions and frequencies, the next by the next."""
    tables = [
        F.rotary_angles(at, own, factor) for at, own in zip(positions, frequencies, strict=True)
    ]
    cos, sin = (_halves_alike([table[i] for table in tables]) for i in range(2))
    return F.rotary(q, cos, sin), F.rotary(k, cos, sin)


def _halves_alike(tables: Sequence[Tensor]) -> Tensor:
    """Tables [tokens, 2 x pairs] of halves that are alike -> one of all their pairs, as well."""
    firsts = [F.split(t, t.type.size(1) // 2, t.type.size(1) // 2)[0] for t in tables]
    half = F.concat(*firsts)
    return F.concat(half, half)


def frequencies(
    scaling: RotaryScaling, head_dim: int, max_context: int
) -> tuple[tuple[float, ...], float]:
    """Radians a position for each rotated pair, and the factor on cosines and sines.

    Where a type depends on the sequence's length (dynamic, longrope), `max_context` stands for
    it: one engine turns every sequence alike, so that a cached key never needs another angle and
    nobody's text depends on who shares the batch.
    """
    inverse, factor = ROTARY_TYPES[scaling.rope_type](
        scaling, rotated(scaling, head_dim), max_context
    )
    return tuple(map(float, inverse)), factor


def rotated(scaling: RotaryScaling, head_dim: int) -> int:
    """How many elements of a head turn."""
    return int(head_dim * scaling.partial_rotary_factor)


def _default(scaling: RotaryScaling, dim: int, max_context: int) -> tuple[Array, float]:
    return 1.0 / _wavelengths(scaling.rope_theta, dim), 1.0


def _linear(scaling: RotaryScaling, dim: int, max_context: int) -> tuple[Array, float]:
    """Positions divided by a factor: Chen et al. 2023, arxiv.org/abs/2306.15595."""
    assert scaling.factor is not None
    return 1.0 / _wavelengths(scaling.rope_theta, dim) / np.float32(scaling.factor), 1.0


def _dynamic(scaling: RotaryScaling, dim: int, max_context: int) -> tuple[Array, float]:
    """A base that grows with the length beyond what was trained (NTK-aware, bloc97, emozilla)."""
    assert scaling.factor is not None
    assert scaling.max_position_embeddings is not None
    trained = scaling.max_position_embeddings
    growth = scaling.factor * max(max_context, trained) / trained - (scaling.factor - 1)
    return 1.0 / _wavelengths(scaling.rope_theta * growth ** (dim / (dim - 2)), dim), 1.0


def _yarn(scaling: RotaryScaling, dim: int, max_context: int) -> tuple[Array, float]:
    """Fast pairs as trained, slow ones interpolated: Peng et al. 2023, arxiv.org/abs/2309.00071."""
    trained = scaling.original_max_position_embeddings
    assert trained is not None
    factor = scaling.factor
    if factor is None:
        assert scaling.max_position_embeddings is not None
        factor = scaling.max_position_embeddings / trained

    def pair_of(rotations: float) -> float:
        """The pair that turns so often over the trained length."""
        turns = math.log(trained / (rotations * 2 * math.pi))
        return dim * turns / (2 * math.log(scaling.rope_theta))

    low, high = pair_of(scaling.beta_fast or 32.0), pair_of(scaling.beta_slow or 1.0)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    interpolated = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / width, 0, 1)
    waves = _wavelengths(scaling.rope_theta, dim)
    inverse = interpolated / (factor * waves) + (1 - interpolated) / waves

    if scaling.attention_factor is not None:
        return inverse, scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        ratio = yarn_magnitude(factor, scaling.mscale)
        return inverse, ratio / yarn_magnitude(factor, scaling.mscale_all_dim)
    return inverse, yarn_magnitude(factor)


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """By how much scores grow where positions are stretched by a factor."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _llama3(scaling: RotaryScaling, dim: int, max_context: int) -> tuple[Array, float]:
    """Slow pairs slowed further, with a smooth passage: Llama 3.1's reference code."""
    assert scaling.factor is not None
    assert scaling.low_freq_factor is not None
    assert scaling.high_freq_factor is not None
    assert scaling.original_max_position_embeddings is not None
    trained = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    inverse = 1.0 / _wavelengths(scaling.rope_theta, dim)
    turns = trained * inverse / (2 * math.pi)  # over the trained length
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * inverse / scaling.factor + smooth * inverse, 1.0


def _longrope(scaling: RotaryScaling, dim: int, max_context: int) -> tuple[Array, float]:
    """A searched factor for each pair: Ding et al. 2024, arxiv.org/abs/2402.13753."""
    trained = scaling.original_max_position_embeddings
    assert trained is not None
    assert scaling.short_factor is not None
    assert scaling.long_factor is not None
    chosen = scaling.long_factor if max_context > trained else scaling.short_factor
    inverse = 1.0 / (np.asarray(chosen, np.float32) * _wavelengths(scaling.rope_theta, dim))
    magnitude = scaling.long_mscale if max_context > trained else scaling.short_mscale
    if magnitude is not None:
        return inverse, magnitude  # Phi-3.5-MoE says it outright
    factor = scaling.factor
    if factor is None:
        assert scaling.max_position_embeddings is not None
        factor = scaling.max_position_embeddings / trained
    if scaling.attention_factor is not None:
        return inverse, scaling.attention_factor
    if factor <= 1:
        return inverse, 1.0
    return inverse, math.sqrt(1 + math.log(factor) / math.log(trained))


def _wavelengths(theta: float, dim: int) -> Array:
    """theta^(2i / dim): positions for one radian, in f32 as models are trained with it."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(np.float32(theta), exponents)


ROTARY_TYPES: dict[str, Callable[[RotaryScaling, int, int], tuple[Array, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}

# What `rope_parameters` must give for each type, beside rope_theta.
REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "max_position_embeddings"),
    "yarn": ("original_max_position_embeddings",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
