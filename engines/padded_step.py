"""A packed step as calls of a graph over padded rows, for engines whose cache is in slots.

An engine that attends over a slot for each sequence, and not over blocks, says that its blocks take
no memory and that a sequence's state is its slot. What is left to do is here: rows for sequences,
padding, and which call a sequence goes into. Nothing here depends on a particular engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from paddock.engines.protocol import StepInputs
from paddock.graph import Array

_WASTE = 0.25
"""Padding, as a share of a call's tokens, that sharing a call is worth at most."""


@dataclass(frozen=True)
class PaddedCall:
    """One call: S rows of L tokens. Row r is the sequence in slot `first_slot + r`."""

    first_slot: int
    token_ids: Array  # i64 [S, L]
    positions: Array  # i64 [S, L]
    write_indices: Array  # i32 [S]: where in its slot a row's tokens go
    key_value_lengths: Array  # i32 [S]: tokens of the slot that the row's last query sees
    row_lengths: Array  # i32 [S]: tokens of each row that are not padding
    token_types: Array  # i64 [S, L]
    logit_rows: Array  # i64 [R]: of the call's S x L tokens; one at least
    step_rows: Array  # i64 [R']: these rows of the step's logits ...
    from_rows: Array  # i64 [R']: ... are these of the call's

    @property
    def is_generation(self) -> bool:
        """Whether every row has one token."""
        return self.token_ids.shape[1] == 1


@dataclass(frozen=True)
class _Row:
    """A sequence's part of a step."""

    slot: int
    start: int  # of its tokens in the packed step
    tokens: int
    past: int


class PaddedPlanner:
    """`capacity`: tokens that a slot holds, one more than any sequence has. A call has at most
    `max_rows` rows and `max_step_tokens` tokens, padding counted. Where nothing is kept in slots,
    `has_slots` False, a call's rows are any sequences, those of like length together."""

    def __init__(
        self, capacity: int, max_rows: int, max_step_tokens: int, *, has_slots: bool = True
    ) -> None:
        self.capacity, self.max_rows, self.max_step_tokens = capacity, max_rows, max_step_tokens
        self.has_slots = has_slots

    def calls(self, step: StepInputs) -> Iterator[PaddedCall]:
        """Decoding sequences share a call; prompts share one with neighbours of like lengths.

        Slots between two sequences of a call that take no part in it are rows, too: they write one
        token behind everything, and see one.
        """
        rows = _rows(step)
        if not self.has_slots:
            by_length = sorted(rows, key=lambda row: row.tokens)
            rows = [replace(row, slot=i) for i, row in enumerate(by_length)]
        for group in self._within_reach([row for row in rows if row.tokens == 1]):
            yield self._call(step, group, 1)
        for group in self._groups([row for row in rows if row.tokens > 1]):
            yield self._call(step, group, max(row.tokens for row in group))

    def _within_reach(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Runs of slots, some perhaps left out, that are rows of one call."""
        group: list[_Row] = []
        for row in rows:
            if group and row.slot - group[0].slot >= self.max_rows:
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def _groups(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Runs of neighbouring slots that fit into a call without much padding."""
        group: list[_Row] = []
        for row in rows:
            if group and not (row.slot == group[-1].slot + 1 and self._fits([*group, row])):
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def _fits(self, group: list[_Row]) -> bool:
        longest = max(row.tokens for row in group)
        padded, real = longest * len(group), sum(row.tokens for row in group)
        # An update that would reach beyond its slot is dropped whole.
        inside = all(row.past + longest <= self.capacity for row in group)
        inside = inside and len(group) <= self.max_rows
        return inside and padded <= self.max_step_tokens and padded - real <= _WASTE * padded

    def _call(self, step: StepInputs, rows: list[_Row], length: int) -> PaddedCall:
        first, last = rows[0].slot, rows[-1].slot
        count = last - first + 1
        token_ids = np.zeros((count, length), np.int64)
        positions = np.zeros((count, length), np.int64)
        write_indices = np.full(count, self.capacity - length, np.int32)
        lengths = np.full(count, length, np.int32)
        row_lengths = np.zeros(count, np.int32)
        token_types = np.zeros((count, length), np.int64)
        # Of the step's tokens, where they stand in this call; -1 for those in others.
        place = np.full(len(step.token_ids), -1, np.int64)
        for row in rows:
            r, part = row.slot - first, slice(row.start, row.start + row.tokens)
            token_ids[r, : row.tokens] = step.token_ids[part]
            positions[r, : row.tokens] = step.positions[part]
            # Padding goes on as if the sequence did, so that a mask by positions lets it see.
            positions[r, row.tokens :] = step.positions[part.stop - 1]
            write_indices[r] = row.past
            lengths[r] = row.past + length
            row_lengths[r] = row.tokens
            if step.token_types is not None:
                token_types[r, : row.tokens] = step.token_types[part]
            place[part] = r * length + np.arange(row.tokens)
        asked = place[step.logit_rows]
        step_rows = np.flatnonzero(asked >= 0)
        unique, inverse = np.unique(asked[step_rows], return_inverse=True)
        return PaddedCall(
            first_slot=first,
            token_ids=token_ids,
            positions=positions,
            write_indices=write_indices,
            key_value_lengths=lengths,
            row_lengths=row_lengths,
            token_types=token_types,
            logit_rows=unique if len(unique) else np.zeros(1, np.int64),
            step_rows=step_rows,
            from_rows=inverse.astype(np.int64),
        )


def _rows(step: StepInputs) -> list[_Row]:
    """The sequences of a step by their slots."""
    rows = []
    for s, past in enumerate(step.past_lengths):
        start, stop = int(step.sequence_starts[s]), int(step.sequence_starts[s + 1])
        slot = int(step.sequence_slots[s])
        rows.append(_Row(slot, start, stop - start, int(past)))
    return sorted(rows, key=lambda row: row.slot)
