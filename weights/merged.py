"""Several ranks' bound weights as one: what a check of all ranks together reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from paddock.graph import Array, Mesh, Parameter
from paddock.graph.ops import scale_name
from paddock.weights.bound import BoundWeights
from paddock.weights.errors import WeightError


class ChainedWeights:
    """The pipeline stages of one tensor-parallel rank: each slot from the stage that has it."""

    def __init__(self, stages: Sequence[BoundWeights]) -> None:
        self._stages = stages

    def whole(self, name: str) -> Array:
        return self._of(name).whole(name)

    def part(self, name: str, part: str) -> Array:
        return self._of(name).part(name, part)

    def stored(self, name: str, part: str = "") -> Array:
        return self._of(name).stored(name, part)

    def _of(self, name: str) -> BoundWeights:
        return next((stage for stage in self._stages if name in stage.names), self._stages[0])


class MergedWeights:
    """The whole model's weights in floats, put together from all ranks' shares.

    Quantized slots come dequantized to f32: ranks that divide a row have a scale of it each.
    """

    def __init__(
        self, slots: Mapping[str, Parameter], ranks: Sequence[tuple[Mesh, BoundWeights]]
    ) -> None:
        self._slots, self._ranks = slots, ranks

    def whole(self, name: str) -> Array:
        slot, shares = self._slots[name], self._shares(name)
        values = [_floats(name, slot, weights) for _, weights in shares]
        if slot.shard is None:
            return values[0]
        axis = slot.shard.dim
        merged = np.empty(slot.shape, values[0].dtype)
        covered = np.zeros(slot.shape[axis], bool)
        before = 0
        for part, size in slot.parts.items():
            for (mesh, _), value in zip(shares, values, strict=True):
                local = slot.shard.parts.local(mesh).sizes
                start = sum(local[p] for p in list(local)[: list(local).index(part)])
                box = slot.shard.parts.slice(part, mesh)
                place = slice(before + box.start, before + box.stop)
                share = np.take(value, range(start, start + local[part]), axis)
                merged[(slice(None),) * axis + (place,)] = share
                covered[place] = True
            before += size
        if not covered.all():
            raise WeightError(f"{name}: the ranks' shares leave gaps; build again")
        return merged

    def part(self, name: str, part: str) -> Array:
        slot = self._slots[name]
        axis = slot.shard.dim if slot.shard else 0
        sizes = list(slot.parts)
        before = sum(slot.parts[p] for p in sizes[: sizes.index(part)])
        return np.take(self.whole(name), range(before, before + slot.parts[part]), axis)

    def stored(self, name: str, part: str = "") -> Array:
        return self.part(name, part) if part else self.whole(name)

    def _shares(self, name: str) -> list[tuple[Mesh, BoundWeights]]:
        """The ranks of the stage that has the slot; of a tied one that two have, the first."""
        holding = [(mesh, weights) for mesh, weights in self._ranks if name in weights.names]
        if not holding:
            raise WeightError(f"{name}: no rank holds it; build again")
        stage = holding[0][0].pp_rank
        return [(mesh, weights) for mesh, weights in holding if mesh.pp_rank == stage]


def _floats(name: str, slot: Parameter, weights: BoundWeights) -> Array:
    values = weights.whole(name)
    if slot.quant is None:
        return values
    scales = weights.whole(scale_name(name)).astype(np.float32)
    rows, groups = scales.shape
    grouped = values.astype(np.float32).reshape(rows, groups, -1)
    return (grouped * scales[..., None]).reshape(values.shape)
