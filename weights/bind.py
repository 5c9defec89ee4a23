"""Bind a checkpoint's tensors to a model's slots: proved from headers, before any data is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paddock.graph import (
    Array,
    DType,
    GraphError,
    Mesh,
    Parameter,
    QuantFormat,
    nearest,
)
from paddock.graph.ops import scale_shape
from paddock.weights.claims import Claims
from paddock.weights.errors import WeightError
from paddock.weights.locate import MisshapenTensor, MissingTensor, locate, stored_name, tied_to
from paddock.weights.mismatches import Mismatches
from paddock.weights.rules import Ignore, Rule, for_checkpoint, has_words
from paddock.weights.safetensors_file import Box, TensorInfo
from paddock.weights.source import Microscaled, Source, Stored, cast, whole


@dataclass(frozen=True)
class BoundPart:
    """One named part of a slot: this rank's `box` of a source."""

    name: str
    source: Source
    box: Box

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.box)

    def tensor(self) -> TensorInfo | None:
        """The checkpoint tensor that this part is, whole and as stored, or None."""
        if isinstance(self.source, Stored) and self.box == whole(self.source.shape):
            return self.source.tensor
        return None

    def __str__(self) -> str:
        if self.box == whole(self.source.shape):
            return str(self.source)
        return f"{self.source}[{', '.join(f'{start}:{stop}' for start, stop in self.box)}]"


@dataclass(frozen=True)
class BoundSlot:
    """What fills this rank's share of a slot: its parts, joined along `axis`.

    `dtype` is None for the compute type, `quant` None where it is kept as it is.
    """

    name: str
    parts: tuple[BoundPart, ...]
    axis: int
    dtype: DType | None = None
    quant: QuantFormat | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        if shape:
            shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    def rows(self, start: int, stop: int) -> Array:
        """Rows of this rank's share, in the checkpoint's type. Only their bytes are read."""
        if self.axis != 0 or not self.shape:
            pieces = [p.source.read(_rows_of(p.box, start, stop)) for p in self.parts]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, self.axis)
        pieces, before = [], 0
        for part in self.parts:
            first, last = max(start - before, 0), min(stop - before, part.shape[0])
            if first < last:
                pieces.append(part.source.read(_rows_of(part.box, first, last)))
            before += part.shape[0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def __str__(self) -> str:
        filled = ", ".join(f"{p.name}: {p}" if len(self.parts) > 1 else str(p) for p in self.parts)
        stored = f" as {self.quant}" if self.quant else ""
        return f"{self.name} {list(self.shape)}{stored} <- {filled}"


@dataclass(frozen=True)
class Binding:
    """What fills each live slot of one rank. It is data: nothing has been read yet."""

    mesh: Mesh
    slots: Mapping[str, BoundSlot]
    ignored: tuple[str, ...]  # checkpoint tensors that are left unread deliberately

    def load(self, name: str, dtype: DType | None = None) -> Array:
        """This rank's share of a slot, reading its bytes alone; `dtype` None for the slot's own,
        or else the checkpoint's. Integer formats are not applied."""
        slot = self.slots[name]
        array = slot.rows(0, slot.shape[0]) if slot.shape else slot.parts[0].source.read(())
        wanted = dtype or slot.dtype
        return array if wanted is None else cast(array, wanted)

    def describe(self) -> str:
        """One line a slot, and what is ignored."""
        lines = [str(slot) for slot in self.slots.values()]
        lines += [f"(ignored) {name}" for name in self.ignored]
        return "\n".join(lines)


def prove(
    slots: Mapping[str, Parameter],
    tensors: Mapping[str, TensorInfo],
    rules: Sequence[Rule],
    mesh: Mesh | None = None,
    *,
    tied: bool = False,
    live: Sequence[Collection[str]] | None = None,
) -> Binding:
    """The binding of `mesh`'s rank, after proving that of all ranks together.

    `slots` are the whole model's, by name; `live` names those that each pipeline stage computes
    with, in the order of the stages (all of them where None). `tied` is the config's
    tie_word_embeddings: it switches the map's `Tie` rules on.

    Proved, from shapes and names alone: every slot is filled exactly once; every checkpoint
    tensor is used whole, once, or ignored by a rule; shapes and element types agree; the shares
    of all ranks cover each part exactly once, or repeat it where the slot declares that. Raises
    one `WeightError` that tells the first mismatch in full and counts the others.
    """
    mesh = mesh or Mesh()
    rules = for_checkpoint(rules, tensors)
    mismatches = Mismatches()
    claims = Claims()
    located: dict[str, dict[str, Source]] = {}
    for name, slot in slots.items():
        target = tied_to(name, rules) if tied else None
        if target is not None and target not in slots:
            raise WeightError(f"{name}: the weight map ties it to {target!r}, which is no slot")
        parts = _sources(name, slot, target, slots, tensors, rules, mismatches)
        if parts is not None:
            located[name] = parts
            if target is None:
                claims.add(name, parts)
    for name, slot in slots.items():
        if name in located:
            _check_ranks(name, slot, located[name], mesh, mismatches)
    replaced = {stored_name(n, rules) for n in slots if tied and tied_to(n, rules) is not None}
    ignored = tuple(
        tensor
        for tensor in tensors
        if tensor not in mismatches.touched
        and (
            tensor in replaced
            or any(isinstance(rule, Ignore) and has_words(tensor, rule.words) for rule in rules)
        )
    )
    mismatches.claims += claims.faults()
    known = mismatches.touched.union(ignored)
    mismatches.unused = [tensor for tensor in tensors if tensor not in known]
    mismatches.raise_any(tensors, slots)
    if live is not None:
        _check_live(live, slots, mesh)
    alive = slots if live is None else live[mesh.pp_rank]
    return Binding(
        mesh,
        {n: _share(n, s, located[n], mesh) for n, s in slots.items() if n in alive},
        ignored,
    )


def _sources(
    name: str,
    slot: Parameter,
    target: str | None,
    slots: Mapping[str, Parameter],
    tensors: Mapping[str, TensorInfo],
    rules: Sequence[Rule],
    mismatches: Mismatches,
) -> dict[str, Source] | None:
    """Part -> source, each of the part's whole shape; None where something does not fit."""
    found: dict[str, Source] = {}
    for part in slot.parts:
        label = f"{name} (part {part!r})" if len(slot.parts) > 1 else name
        try:
            if target is None:
                source = locate(name, slot, part, tensors, rules)
            else:
                # A tied slot has one part, as its target has: the head and the embedding.
                source = locate(
                    target, slots[target], next(iter(slots[target].parts)), tensors, rules
                )
        except MissingTensor as missing:
            mismatches.missing.append((label, missing.tensor, tied_to(name, rules)))
            continue
        except MisshapenTensor as misshapen:
            mismatches.shapes.append(f"{label}: {misshapen.tensor!r}: {misshapen}")
            mismatches.touched.add(misshapen.tensor)
            continue
        taken = [tensor for tensor, _ in source.boxes()]
        mismatches.touched.update(tensor.name for tensor in taken)
        expected = _part_shape(slot, part)
        if source.shape != expected:
            names = ", ".join(dict.fromkeys(tensor.name for tensor in taken))
            mismatches.shapes.append(
                f"{label}: expected {list(expected)}, the checkpoint's {_short(names)} gives"
                f" {list(source.shape)}"
            )
            continue
        packed = isinstance(source, Microscaled)  # bytes, which it makes floats of
        odd = next((t for t in taken if not packed and not _convertible(t, slot.dtype)), None)
        if odd is not None:
            mismatches.dtypes.append(
                f"{label}: expected {_expected_dtypes(slot.dtype)}, the checkpoint's {odd.name!r}"
                f" is {odd.dtype}"
            )
            continue
        found[part] = source
    return found if len(found) == len(slot.parts) else None


def _check_ranks(
    name: str, slot: Parameter, parts: Mapping[str, Source], mesh: Mesh, mismatches: Mismatches
) -> None:
    """The tensor-parallel ranks' shares tile each part, or repeat it where that is declared."""
    for part in parts:
        whole_shape = _part_shape(slot, part)
        shares: Counter[tuple[int, int]] = Counter()
        for rank in range(mesh.tp):
            of_rank = replace(mesh, tp_rank=rank)
            try:
                box = _box(slot, part, of_rank)
                if slot.quant is not None:
                    scale_shape(slot.local_shape(of_rank), slot.quant)
            except GraphError as error:
                mismatches.ranks.append(f"{name}: {error}")
                return
            if slot.shard is not None:
                shares[box[slot.shard.dim]] += 1
        if slot.shard is None:
            continue
        end = 0
        for start, stop in sorted(shares):
            if start != end or stop <= start:
                break
            end = stop
        repeats = len(set(shares.values())) > 1 or (
            max(shares.values()) > 1 and not slot.shard.parts.repeat
        )
        if end != whole_shape[slot.shard.dim] or repeats:
            mismatches.ranks.append(
                f"{name} (part {part!r}): the shares of {mesh.tp} ranks,"
                f" {', '.join(f'{a}:{b}' for a, b in shares)}, do not make up"
                f" 0:{whole_shape[slot.shard.dim]} of axis {slot.shard.dim}"
            )


def _check_live(
    live: Sequence[Collection[str]], slots: Mapping[str, Parameter], mesh: Mesh
) -> None:
    if len(live) != mesh.pp:
        raise WeightError(f"live slots are given for {len(live)} stages, the mesh has {mesh.pp}")
    for stage, names in enumerate(live):
        for name in names:
            if name not in slots:
                raise WeightError(
                    f"stage {stage} computes with {name!r}, which is no slot of the model"
                    + nearest(name, slots, count=1)
                )


def _share(name: str, slot: Parameter, parts: Mapping[str, Source], mesh: Mesh) -> BoundSlot:
    return BoundSlot(
        name,
        tuple(BoundPart(part, source, _box(slot, part, mesh)) for part, source in parts.items()),
        slot.shard.dim if slot.shard else 0,
        slot.dtype,
        slot.quant,
    )


def _part_shape(slot: Parameter, part: str) -> tuple[int, ...]:
    """The whole model's shape of one part."""
    if slot.shard is None:
        return slot.shape
    shape = list(slot.shape)
    shape[slot.shard.dim] = slot.parts[part]
    return tuple(shape)


def _box(slot: Parameter, part: str, mesh: Mesh) -> Box:
    """This rank's share of a part, within the whole part."""
    if slot.shard is None:
        return whole(slot.shape)
    return tuple((s.start, s.stop) for s in slot.local_slice(part, mesh))


def _rows_of(box: Box, start: int, stop: int) -> Box:
    return ((box[0][0] + start, box[0][0] + stop), *box[1:])


def _convertible(tensor: TensorInfo, wanted: DType | None) -> bool:
    """Floats are converted into one another; any other type must be the slot's own."""
    found = tensor.graph_dtype
    if wanted is None or wanted.is_float:
        return found is not None and found.is_float
    return found is wanted


def _expected_dtypes(wanted: DType | None) -> str:
    if wanted is None or wanted.is_float:
        return "F32, F16, BF16 or F64"
    return str(wanted).upper()


def _short(names: str) -> str:
    return names if len(names) <= 160 else f"{names[:150]} ..."
