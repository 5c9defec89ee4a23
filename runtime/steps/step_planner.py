"""A scheduler's decision as the arrays that the engine's compiled graph takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from paddock.engines.protocol import StepInputs
from paddock.graph.dtype import Array
from paddock.models.images import ImageForm
from paddock.runtime.images.prepared import PreparedImage, packed, within
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.request import Sequence, TokenIds
from paddock.runtime.scheduling.scheduler import Chunk, Decision


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Logit rows `start : stop` are for log-probabilities of a prompt's `next_token_ids`."""

    sequence: Sequence
    start: int
    stop: int
    next_token_ids: TokenIds


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step ready to run, and whom each logit row is for."""

    decision: Decision
    inputs: StepInputs
    sampled: list[Sequence]
    sampled_rows: npt.NDArray[np.int64] | None
    """Row of the logits for each of `sampled`; None: they are all the rows, in this order."""
    prompts: list[PromptRows]


class StepPlanner:
    """Fills preallocated arrays; two sets in turn, so that a step may run while the next is made.

    What a plan refers to is valid until the next but one.
    """

    def __init__(
        self,
        limits: Limits,
        block_size: int,
        block_rows: npt.NDArray[np.int32],
        image_form: ImageForm | None = None,
    ) -> None:
        """`block_rows` [max_sequences, blocks]: the blocks of the sequence in each slot;
        `image_form`: what images are to a model that sees."""
        self._image_form = image_form
        self._block_size = block_size
        self._block_rows = block_rows
        self._ramp = np.arange(block_rows.shape[1] * block_size, dtype=np.int64)
        self._buffers = [_Buffers(limits, block_rows.shape[1]) for _ in range(2)]

    def plan(self, decision: Decision) -> PlannedStep:
        """The packed form of a decision."""
        self._buffers.reverse()
        buffers = self._buffers[0]
        chunks = decision.chunks
        sequences, tokens = len(chunks), decision.tokens

        starts = buffers.sequence_starts[: sequences + 1]
        np.cumsum([chunk.tokens for chunk in chunks], out=starts[1:])
        past = buffers.past_lengths[:sequences]
        past[:] = [chunk.past for chunk in chunks]

        token_ids = buffers.token_ids[:tokens]
        positions = buffers.positions[:tokens]
        singles = _leading_singles(chunks)
        token_ids[:singles] = [chunk.sequence.token_at(chunk.past) for chunk in chunks[:singles]]
        positions[:singles] = past[:singles]
        begin = singles
        for chunk in chunks[singles:]:
            end, last = begin + chunk.tokens, chunk.past + chunk.tokens
            token_ids[begin:end] = chunk.sequence.token_ids[chunk.past : last]
            positions[begin:end] = self._ramp[chunk.past : last]
            begin = end

        slots = buffers.sequence_slots[:sequences]
        slots[:] = [chunk.sequence.slot for chunk in chunks]

        block_starts = buffers.block_starts[: sequences + 1]
        size = self._block_size
        blocks = 0
        for index, chunk in enumerate(chunks):
            count = -(-(chunk.past + chunk.tokens) // size)
            row = self._block_rows[chunk.sequence.slot]
            buffers.block_table[blocks : blocks + count] = row[:count]
            blocks += count
            block_starts[index + 1] = blocks

        sampled, sampled_rows, prompts, logit_rows = self._logit_rows(buffers, chunks, singles)
        inputs = StepInputs(
            token_ids=token_ids,
            positions=positions,
            sequence_starts=starts,
            past_lengths=past,
            block_table=buffers.block_table[:blocks],
            block_starts=block_starts,
            sequence_slots=slots,
            logit_rows=logit_rows,
        )
        if chunks and chunks[0].sequence.source_length:
            inputs = replace(inputs, **_sources(chunks), source_features=_features(chunks))
        form = self._image_form
        if form is not None:
            inputs = replace(inputs, **_images(chunks, buffers.image_rows, form.row_size))
            if form.grid:
                inputs = replace(inputs, **_grid(chunks, positions, buffers.grid_positions))
        return PlannedStep(decision, inputs, sampled, sampled_rows, prompts)

    def _logit_rows(
        self, buffers: _Buffers, chunks: list[Chunk], singles: int
    ) -> tuple[list[Sequence], TokenIds | None, list[PromptRows], TokenIds]:
        """Only tokens that somebody wants the logits of reach the vocabulary head."""
        if singles == len(chunks) and all(chunk.samples for chunk in chunks):
            # All decode, by far the most frequent step.
            rows = buffers.logit_rows[:singles]
            rows[:] = np.arange(singles)
            return [chunk.sequence for chunk in chunks], None, [], rows
        sampled: list[Sequence] = []
        sampled_rows: list[int] = []
        prompts: list[PromptRows] = []
        rows = buffers.logit_rows
        count = begin = 0
        for chunk in chunks:
            if chunk.prompt_rows:
                first = begin + chunk.first_prompt_row
                stop = count + chunk.prompt_rows
                rows[count:stop] = np.arange(first, first + chunk.prompt_rows)
                after = chunk.past + chunk.first_prompt_row + 1
                next_ids = chunk.sequence.token_ids[after : after + chunk.prompt_rows]
                prompts.append(PromptRows(chunk.sequence, count, stop, next_ids))
                count = stop
            begin += chunk.tokens
            if chunk.samples:
                rows[count] = begin - 1
                sampled.append(chunk.sequence)
                sampled_rows.append(count)
                count += 1
        every = None if not prompts else np.array(sampled_rows, np.int64)
        return sampled, every, prompts, rows[:count]


class _Buffers:
    """Arrays as large as the limits allow; first entries of starts stay 0."""

    def __init__(self, limits: Limits, blocks_per_sequence: int) -> None:
        sequences = limits.max_sequences
        self.token_ids = np.zeros(limits.max_tokens_per_step, np.int64)
        self.positions = np.zeros(limits.max_tokens_per_step, np.int64)
        self.sequence_starts = np.zeros(sequences + 1, np.int32)
        self.past_lengths = np.zeros(sequences, np.int32)
        self.block_table = np.zeros(sequences * blocks_per_sequence, np.int32)
        self.block_starts = np.zeros(sequences + 1, np.int32)
        self.sequence_slots = np.zeros(sequences, np.int32)
        self.image_rows = np.zeros(limits.max_tokens_per_step, np.int64)
        self.grid_positions = np.zeros((3, limits.max_tokens_per_step), np.int64)
        self.logit_rows = np.zeros(sequences + limits.max_prompt_logit_rows, np.int64)


_NO_TOKENS = np.zeros(0, np.int64)


def _source_of(sequence: Sequence) -> TokenIds:
    source = sequence.request.source_token_ids
    return _NO_TOKENS if source is None else source


def _features(chunks: list[Chunk]) -> Array | None:
    """What those that begin hear, one after another."""
    heard = [chunk.sequence.request.source_features for chunk in chunks]
    found = [features for features in heard if features is not None]
    if not found:
        return None
    begin = [f for f, chunk in zip(found, chunks, strict=True) if not chunk.past]
    return np.concatenate(begin) if begin else found[0][:0]


def _sources(chunks: list[Chunk]) -> dict[str, Array]:
    """An encoder-decoder's part of the step: sources of those that begin, and where all lie."""
    begin = [_NO_TOKENS if chunk.past else _source_of(chunk.sequence) for chunk in chunks]
    blocks = [chunk.sequence.source_blocks for chunk in chunks]
    return {
        "source_ids": np.concatenate(begin),
        "source_positions": np.concatenate([np.arange(len(ids)) for ids in begin]),
        "source_starts": np.cumsum([0, *map(len, begin)]).astype(np.int32),
        "source_lengths": np.array([c.sequence.source_length for c in chunks], np.int32),
        "source_table": np.array([b for own in blocks for b in own], np.int32),
        "source_table_starts": np.cumsum([0, *map(len, blocks)]).astype(np.int32),
    }


def _images(chunks: list[Chunk], buffer: Array, patch_size: int) -> dict[str, Array]:
    """The images of which chunks have tokens, each whole, and the row that each token stands for.

    One that is cut in two by the end of a chunk comes with the next one again.
    """
    images: list[PreparedImage] = []
    rows = buffer[: sum(chunk.tokens for chunk in chunks)]
    rows[:] = -1
    first = begin = 0
    for past, tokens, placed in ((c.past, c.tokens, c.sequence.request.images) for c in chunks):
        for image in within(placed, past, past + tokens):
            start, stop = max(image.start, past), min(image.stop, past + tokens)
            own = image.image.rows[start - image.start : stop - image.start]
            rows[begin + start - past : begin + stop - past] = first + own
            images.append(image.image)
            first += image.image.made
        begin += tokens
    return {"image_rows": rows, **packed(images, patch_size)}


def _grid(chunks: list[Chunk], positions: TokenIds, buffer: Array) -> dict[str, Array]:
    """Tokens' places in time, rows and columns: their numbers, but for sequences with images."""
    found = buffer[:, : len(positions)]
    found[:] = positions
    begin = 0
    for chunk in chunks:
        own = chunk.sequence.request.grid_positions
        if own is not None:
            end = chunk.past + chunk.tokens
            found[:, begin : begin + chunk.tokens] = own.between(chunk.past, end)
        begin += chunk.tokens
    return dict(zip(("time_positions", "row_positions", "column_positions"), found, strict=True))


def _leading_singles(chunks: list[Chunk]) -> int:
    for index, chunk in enumerate(chunks):
        if chunk.tokens != 1:
            return index
    return len(chunks)
