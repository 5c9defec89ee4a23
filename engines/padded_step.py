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
    # Of an encoder-decoder: the sources of rows that begin, or one token that nobody looks at.
    source_ids: Array | None = None  # i64 [S, E]
    source_features: Array | None = None  # f32 [S, E, size], in the place of ids where one hears
    source_positions: Array | None = None  # i64 [S, E]
    source_row_lengths: Array | None = None  # i32 [S]: tokens of each that are not padding
    source_write_indices: Array | None = None  # i32 [S]: where in its slot a source goes
    source_lengths: Array | None = None  # i32 [S]: tokens that each row's source has
    # Of a model that sees: the images of which a row has a token, or as little of one as there can
    # be, that nobody looks at.
    image_patches: Array | None = None  # f32 [I, P, size]
    image_positions: Array | None = None  # i64 [I, P]
    image_row_lengths: Array | None = None  # i32 [I]: patches of each that are not padding
    image_rows: Array | None = None  # i64 [S, L]: of the rows that the model makes, or -1
    last_seen: Array | None = None  # i32 [S, L]: the last place in its slot that a token sees

    @property
    def is_generation(self) -> bool:
        """Whether every row has one token, and neither source nor image comes with any."""
        longest = 1 if self.source_positions is None else self.source_positions.shape[1]
        sees = self.image_rows is not None and bool((self.image_rows >= 0).any())
        return self.token_ids.shape[1] == 1 and longest == 1 and not sees


@dataclass(frozen=True)
class _Row:
    """A sequence's part of a step."""

    number: int  # of the sequence in the step
    slot: int
    start: int  # of its tokens in the packed step
    tokens: int
    past: int
    source: slice
    """Of the step's source tokens, those of a sequence that begins."""
    images: Array
    """i64 [tokens]: the step's image that each token is of, or -1."""

    def first(self, tokens: int, images: int) -> _Row:
        """No more than its first tokens, of no more than so many images."""
        seen = np.unique(self.images[:tokens])
        seen = seen[seen >= 0]
        if len(seen) > images:
            tokens = int(np.argmax(self.images == seen[images]))
        return replace(self, tokens=min(self.tokens, tokens), images=self.images[:tokens])

    def behind(self, tokens: int) -> _Row:
        """What is left of it after so many tokens."""
        return replace(
            self,
            start=self.start + tokens,
            tokens=self.tokens - tokens,
            past=self.past + tokens,
            source=slice(0, 0),
            images=self.images[tokens:],
        )

    @property
    def sees(self) -> bool:
        """Whether it has a token of an image."""
        return bool((self.images >= 0).any())

    @property
    def begins(self) -> bool:
        """Whether it brings a source."""
        return self.sources > 0

    @property
    def sources(self) -> int:
        return self.source.stop - self.source.start


class PaddedPlanner:
    """`capacity`: tokens that a slot holds, one more than any sequence has; `source_capacity`: of
    an encoder-decoder's source, likewise. A call has at most `max_rows` rows and `max_step_tokens`
    tokens, padding counted; a row has at most `longest_row`, and what a sequence has beyond them
    comes in later calls. Where nothing is kept in slots, `has_slots` False, a call's rows are
    any sequences, those of like length together. A call has at most `max_images` images, of whose
    patches the model makes a row of each `patches_per_row`."""

    def __init__(
        self,
        capacity: int,
        max_rows: int,
        max_step_tokens: int,
        *,
        source_capacity: int = 0,
        longest_row: int | None = None,
        has_slots: bool = True,
        max_images: int = 1,
        patches_per_row: int = 1,
    ) -> None:
        self.capacity, self.max_rows, self.max_step_tokens = capacity, max_rows, max_step_tokens
        self.source_capacity, self.has_slots = source_capacity, has_slots
        self.longest_row = longest_row or max_step_tokens
        self.max_images, self.patches_per_row = max_images, patches_per_row

    def calls(self, step: StepInputs) -> Iterator[PaddedCall]:
        """Decoding sequences share a call; prompts share one with neighbours of like lengths.

        Slots between two sequences of a call that take no part in it are rows, too: they write one
        token behind everything, and see one.
        """
        rows = _rows(step, self.patches_per_row)
        if not self.has_slots:
            by_length = sorted(rows, key=lambda row: row.tokens)
            rows = [replace(row, slot=i) for i, row in enumerate(by_length)]
        while rows:
            now = [row.first(self.longest_row, self.max_images) for row in rows]
            decode = [row.tokens == 1 and not row.begins and not row.sees for row in now]
            for group in self._within_reach([r for r, d in zip(now, decode, strict=True) if d]):
                yield self._call(step, group, 1)
            for group in self._groups([r for r, d in zip(now, decode, strict=True) if not d]):
                yield self._call(step, group, max(row.tokens for row in group))
            rows = [
                row.behind(part.tokens)
                for row, part in zip(rows, now, strict=True)
                if row.tokens > part.tokens
            ]

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
        inside = inside and len(_images_of(group)) <= self.max_images
        sources = [row.sources for row in group]
        alike = all(sources) or not any(sources)
        most, padded_sources = self.max_step_tokens, max(sources) * len(group)
        return (
            (inside and alike and padded <= most and padded_sources <= most)
            and padded - real <= _WASTE * padded
            and padded_sources - sum(sources) <= _WASTE * padded_sources
        )

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
            **self._sources(step, rows, count),
            **self._images(step, rows, count, length),
        )

    def _images(
        self, step: StepInputs, rows: list[_Row], count: int, length: int
    ) -> dict[str, Array]:
        if step.image_rows is None or step.image_starts is None or step.image_patches is None:
            return {}
        assert step.image_positions is not None
        starts, images = step.image_starts, _images_of(rows)
        sizes = [int(starts[i + 1] - starts[i]) for i in images] or [self.patches_per_row]
        longest = max(sizes)
        patches = np.zeros((len(sizes), longest, step.image_patches.shape[1]), np.float32)
        positions = np.zeros((len(sizes), longest), np.int64)
        for i, image in enumerate(images):
            patches[i, : sizes[i]] = step.image_patches[starts[image] : starts[image + 1]]
            positions[i, : sizes[i]] = step.image_positions[starts[image] : starts[image + 1]]
        image_rows = np.full((count, length), -1, np.int64)
        last_seen = np.zeros((count, length), np.int32)
        for row in rows:
            r, own = row.slot - rows[0].slot, row.images
            first = starts[own] // self.patches_per_row  # of the rows made of the token's image
            here = np.searchsorted(images, own) * (longest // self.patches_per_row)
            found = step.image_rows[row.start : row.start + row.tokens] - first + here
            image_rows[r, : row.tokens] = np.where(own < 0, -1, found)
            last_seen[r, : row.tokens] = row.past + _ends(own)
            last_seen[r, row.tokens :] = row.past + row.tokens - 1
        return {
            "image_patches": patches,
            "image_positions": positions,
            "image_row_lengths": np.array(sizes, np.int32),
            "image_rows": image_rows,
            "last_seen": last_seen,
        }

    def _sources(self, step: StepInputs, rows: list[_Row], count: int) -> dict[str, Array]:
        if step.source_lengths is None:
            return {}
        first, length = rows[0].slot, max(1, *(row.sources for row in rows))
        arrays: dict[str, Array] = {"source_positions": np.zeros((count, length), np.int64)}
        if step.source_ids is not None:
            arrays["source_ids"] = np.zeros((count, length), np.int64)
        if step.source_features is not None:
            size = step.source_features.shape[1]
            arrays["source_features"] = np.zeros((count, length, size), np.float32)
        row_lengths, lengths = np.ones(count, np.int32), np.ones(count, np.int32)
        # Of what is not a source one token is written, behind all of them.
        write_indices = np.full(count, self.source_capacity - length, np.int32)
        for row in rows:
            r = row.slot - first
            lengths[r] = step.source_lengths[row.number]
            if row.begins:
                write_indices[r], row_lengths[r] = 0, row.sources
                for name, array in arrays.items():
                    array[r, : row.sources] = getattr(step, name)[row.source]
        return arrays | {
            "source_row_lengths": row_lengths,
            "source_write_indices": write_indices,
            "source_lengths": lengths,
        }


def _images_of(rows: list[_Row]) -> Array:
    """Of the step's images those of which some row has a token."""
    seen = np.unique(np.concatenate([row.images for row in rows]))
    return seen[seen >= 0]


def _ends(images: Array) -> Array:
    """For each token the last one of its image, itself where it is of none."""
    goes_on = (images[1:] >= 0) & (images[1:] == images[:-1])
    ends = np.flatnonzero(np.append(~goes_on, True))
    found: Array = ends[np.searchsorted(ends, np.arange(len(images)))]
    return found


def _rows(step: StepInputs, patches_per_row: int) -> list[_Row]:
    """The sequences of a step by their slots."""
    rows = []
    images = np.full(len(step.token_ids), -1, np.int64)
    if step.image_rows is not None and step.image_starts is not None:
        made = step.image_starts // patches_per_row
        images = np.where(
            step.image_rows < 0, -1, np.searchsorted(made, step.image_rows, side="right") - 1
        )
    for s, past in enumerate(step.past_lengths):
        start, stop = int(step.sequence_starts[s]), int(step.sequence_starts[s + 1])
        slot = int(step.sequence_slots[s])
        source = slice(0, 0)
        if step.source_starts is not None:
            source = slice(int(step.source_starts[s]), int(step.source_starts[s + 1]))
        rows.append(_Row(s, slot, start, stop - start, int(past), source, images[start:stop]))
    return sorted(rows, key=lambda row: row.slot)
