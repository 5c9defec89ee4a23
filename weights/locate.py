"""Apply a weight map: which checkpoint tensors make up one part of one slot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from paddock.graph import Parameter
from paddock.weights.errors import WeightError
from paddock.weights.rules import (
    Add,
    Body,
    Fold,
    Fuse,
    Interleave,
    Layout,
    MinusExp,
    Mxfp4,
    Rename,
    Rule,
    Split,
    Stack,
    Tie,
    Transpose,
    UnitRows,
    has_words,
    replace_words,
)
from paddock.weights.safetensors_file import TensorInfo
from paddock.weights.source import (
    Folded,
    HeadRows,
    Joined,
    Microscaled,
    NegativeExponential,
    Plus,
    Rows,
    Source,
    Stacked,
    Stored,
    Transposed,
    UnitLength,
)

R = TypeVar("R")


class MissingTensor(Exception):
    """A slot's tensor is not in the checkpoint; `bind` reports it."""

    def __init__(self, tensor: str) -> None:
        super().__init__(tensor)
        self.tensor = tensor


class MisshapenTensor(Exception):
    """A tensor's shape does not let it be divided or turned as the map says."""

    def __init__(self, tensor: str, message: str) -> None:
        super().__init__(message)
        self.tensor = tensor


def tied_to(name: str, rules: Sequence[Rule]) -> str | None:
    """The slot whose value the slot `name` takes where the config ties them."""
    rule = _last(rule for rule in rules if isinstance(rule, Tie) and rule.slot == name)
    return rule.to if rule else None


def locate(
    name: str, slot: Parameter, part: str, tensors: Mapping[str, TensorInfo], rules: Sequence[Rule]
) -> Source:
    """Where the whole of one part of a slot is. Its shape is not yet compared with the slot's.

    Raises `MissingTensor`, `MisshapenTensor`, and `WeightError` for a rule that does not fit
    the slot.
    """

    def stored(slot_name: str) -> Source:
        tensor = stored_name(slot_name, rules)
        if any(isinstance(r, Mxfp4) and has_words(name, r.slot) for r in rules):
            packed = [tensors.get(f"{tensor}_{part}") for part in ("blocks", "scales")]
            if packed[0] is not None and packed[1] is not None:
                return _microscaled(packed[0], packed[1])
        if tensor not in tensors:
            raise MissingTensor(tensor)
        source: Source = Stored(tensors[tensor])
        if any(isinstance(r, Fold) and has_words(name, r.slot) for r in rules):
            source = Folded(_in_runs(source, slot.shape[0]), slot.shape[0])
        if any(isinstance(r, Transpose) and has_words(name, r.slot) for r in rules):
            if len(source.shape) not in (2, 3):
                raise MisshapenTensor(tensor, f"expected two axes, found {list(source.shape)}")
            source = Transposed(source)
        return source

    source = _laid_out(name, slot, part, _layout(name, rules), stored)
    for rule in rules:
        if isinstance(rule, MinusExp) and has_words(name, rule.slot):
            source = NegativeExponential(source)
        if isinstance(rule, Add) and has_words(name, rule.slot):
            source = Plus(source, rule.constant)
        if isinstance(rule, UnitRows) and has_words(name, rule.slot):
            source = UnitLength(source)
    return source


def _laid_out(
    name: str, slot: Parameter, part: str, rule: Layout | None, stored: Callable[[str], Source]
) -> Source:
    match rule:
        case Fuse(into):
            return stored(replace_words(name, into, _words(name, slot, part, rule)))
        case Stack(into):
            if len(slot.parts) == 1:
                every = tuple(rule.parts.values())
            else:
                every = (_words(name, slot, part, rule),)

            def of(expert: int) -> Source:
                pieces: list[Source] = []
                for words in every:
                    source = stored(replace_words(name, into, words.replace("{e}", str(expert))))
                    if "{e}" not in words:
                        rows = _in_runs(source, slot.shape[0]).shape[0] // slot.shape[0]
                        source = Rows(source, expert * rows, (expert + 1) * rows)
                    pieces.append(source)
                return pieces[0] if len(pieces) == 1 else Joined(tuple(pieces))

            return _stacked(tuple(of(expert) for expert in range(slot.shape[0])))
        case Split(order=order):
            _check_parts(name, slot, rule, order)
        case Interleave(order=order):
            _check_parts(name, slot, rule, order)
            return _interleaved(slot, part, rule, stored(name), name)
        case None:
            order = tuple(slot.parts)
    if len(order) == 1:
        return stored(name)
    before = sum(slot.parts[p] for p in order[: order.index(part)])
    total = sum(slot.parts.values())
    fused = stored(name)
    if _axis(slot) != 0 or not fused.shape or fused.shape[0] != total:
        raise MisshapenTensor(
            _first_tensor(fused),
            f"expected {total} rows (of {', '.join(order)}), found {list(fused.shape)}",
        )
    return Rows(fused, before, before + slot.parts[part])


def _in_runs(source: Source, count: int) -> Source:
    """The source, whose rows must be `count` equal runs."""
    if not source.shape or source.shape[0] % count:
        raise MisshapenTensor(
            _first_tensor(source),
            f"expected a multiple of {count} rows, found {list(source.shape)}",
        )
    return source


def _microscaled(blocks: TensorInfo, scales: TensorInfo) -> Source:
    if (
        (blocks.dtype, scales.dtype) != ("U8", "U8")
        or blocks.shape[-1:] != (16,)
        or len(blocks.shape) != 4
        or blocks.shape[:-1] != scales.shape
    ):
        raise MisshapenTensor(
            blocks.name,
            "expected bytes [experts, rows, groups, 16] and a byte for each group's scale,"
            f" found {blocks.dtype} {list(blocks.shape)} and {scales.dtype} {list(scales.shape)}",
        )
    return Microscaled(Stored(blocks), Stored(scales))


def _stacked(experts: tuple[Source, ...]) -> Source:
    odd = next((e for e in experts if e.shape != experts[0].shape), None)
    if odd is not None:
        raise MisshapenTensor(
            _first_tensor(odd),
            f"expected {list(experts[0].shape)} as the first expert has, found {list(odd.shape)}",
        )
    return Stacked(experts)


def _interleaved(slot: Parameter, part: str, rule: Interleave, fused: Source, name: str) -> Source:
    assert slot.shard is not None
    order = rule.order
    parts = slot.shard.parts
    groups = rule.groups or min(
        size // parts.units.get(name, parts.unit) for name, size in parts.sizes.items()
    )
    uneven = [p for p, size in slot.parts.items() if size % groups]
    total = sum(slot.parts.values())
    if uneven or _axis(slot) != 0:
        raise WeightError(f"{name}: its parts {slot.parts} do not take turns in {groups} groups")
    if not fused.shape or fused.shape[0] != total:
        raise MisshapenTensor(
            _first_tensor(fused),
            f"expected {total} rows (of {', '.join(order)} in {groups} groups),"
            f" found {list(fused.shape)}",
        )
    first = sum(slot.parts[p] // groups for p in order[: order.index(part)])
    return HeadRows(fused, groups, first, slot.parts[part] // groups)


def _layout(name: str, rules: Sequence[Rule]) -> Layout | None:
    return _last(
        rule
        for rule in rules
        if isinstance(rule, Layout)
        and has_words(name, rule.into if isinstance(rule, Fuse | Stack) else rule.slot)
    )


def stored_name(name: str, rules: Sequence[Rule]) -> str:
    """A slot's name as the checkpoint has it, where its layout gives it no other."""
    for rule in rules:
        if isinstance(rule, Rename):
            name = replace_words(name, rule.slot, rule.tensor)
        elif isinstance(rule, Body):
            name = name.removeprefix(f"{rule.prefix}.")
    return name


def _words(name: str, slot: Parameter, part: str, rule: Fuse | Stack) -> str:
    _check_parts(name, slot, rule, rule.parts)
    return rule.parts[part] if part in rule.parts else next(iter(rule.parts.values()))


def _check_parts(name: str, slot: Parameter, rule: Layout, parts: Iterable[str]) -> None:
    """A slot of one part may be named anything in a rule of one part."""
    parts = tuple(parts)
    if sorted(parts) != sorted(slot.parts) and not (len(parts) == len(slot.parts) == 1):
        raise WeightError(
            f"{name}: has the parts {', '.join(slot.parts)}, the weight map's {rule} names"
            f" {', '.join(parts)}"
        )


def _axis(slot: Parameter) -> int:
    return slot.shard.dim if slot.shard else 0


def _first_tensor(source: Source) -> str:
    return next(source.boxes())[0].name


def _last(found: Iterable[R]) -> R | None:
    return next(reversed(list(found)), None)
