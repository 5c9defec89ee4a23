"""A session whose text shows every mistake of whoever drives it.

Its cache is real: token ids lie in an array at (block, offset), written at the step's positions
and read back through the step's block table. The logits of a token are a hash of all the tokens
read so. A wrong block, position or past length, a stale or evicted block taken for a prefix, or a
token that was never computed: each changes the logits, and with them the text.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from paddock.engines.protocol import StepInputs
from paddock.graph.dtype import Array
from paddock.runtime.scheduling.limits import Limits

NEVER_WRITTEN = -1


def history_logits(token_ids: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float32]:
    """f32 [vocab_size]: what the model answers after `token_ids`, whatever the batch."""
    digest = hashlib.blake2b(np.ascontiguousarray(token_ids, np.int64).tobytes()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(vocab_size, np.float32) * 3


class HistorySession:
    """Asserts every promise of `StepInputs` on the way, and the limits where they are given."""

    def __init__(
        self,
        *,
        vocab_size: int,
        block_size: int,
        limits: Limits | None = None,
        keeps_state: bool = False,
    ) -> None:
        """`keeps_state`: what it remembers of a sequence lies in its slot, and in no block."""
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.block_bytes = 8 * block_size
        self.state_bytes = 8 * 1024 if keeps_state else 0
        self.slots: list[list[int]] = []
        self.limits = limits
        self.cache = np.zeros((0, block_size), np.int64)
        self.steps = 0
        self.tokens_run = 0
        self.logit_rows_made = 0
        self.closed = False
        self.fail_next: Exception | None = None

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        self.slots = [[] for _ in range(slots)]
        self.cache = np.full((blocks, self.block_size), NEVER_WRITTEN, np.int64)

    def run(self, step: StepInputs) -> Array:
        assert not self.closed
        self.check(step)
        for index in range(len(step.past_lengths)):
            self._write(step, index)
            self._remember(step, index)
        self.steps += 1
        self.tokens_run += len(step.token_ids)
        self.logit_rows_made += len(step.logit_rows)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        sequence_of = np.searchsorted(step.sequence_starts, step.logit_rows, side="right") - 1
        logits = np.empty((len(step.logit_rows), self.vocab_size), np.float32)
        for row, (token, sequence) in enumerate(zip(step.logit_rows, sequence_of, strict=True)):
            history = self._read(step, int(sequence), int(step.positions[token]) + 1)
            if self.state_bytes:
                kept = self.slots[step.sequence_slots[sequence]]
                history = np.array(kept[: len(history)], np.int64)
            logits[row] = history_logits(history, self.vocab_size)
        return logits

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def check(self, step: StepInputs) -> None:
        """Every promise of the packed form."""
        wide = {"token_ids", "positions", "logit_rows"}
        for name, array in vars(step).items():
            if array is None:  # token types, which only encoders have
                continue
            assert array.dtype == (np.int64 if name in wide else np.int32), name
            assert array.ndim == 1, name
            assert array.flags.c_contiguous, name
        tokens, sequences = len(step.token_ids), len(step.past_lengths)
        assert tokens > 0
        assert sequences > 0
        assert len(step.positions) == tokens
        assert len(step.sequence_starts) == len(step.block_starts) == sequences + 1
        assert step.sequence_starts[0] == 0
        assert step.sequence_starts[-1] == tokens
        counts = np.diff(step.sequence_starts)
        assert (counts > 0).all()
        assert (step.past_lengths >= 0).all()
        expected = [np.arange(p, p + n) for p, n in zip(step.past_lengths, counts, strict=True)]
        assert (step.positions == np.concatenate(expected)).all()
        assert ((step.token_ids >= 0) & (step.token_ids < self.vocab_size)).all()

        totals = step.past_lengths + counts
        assert step.block_starts[0] == 0
        assert step.block_starts[-1] == len(step.block_table)
        assert (np.diff(step.block_starts) == -(-totals // self.block_size)).all()
        assert ((step.block_table >= 0) & (step.block_table < len(self.cache))).all()
        self._check_sharing(step)
        assert len(set(step.sequence_slots.tolist())) == len(step.sequence_slots) == sequences
        assert ((step.sequence_slots >= 0) & (step.sequence_slots < len(self.slots))).all()

        assert (np.diff(step.logit_rows) > 0).all()
        assert ((step.logit_rows >= 0) & (step.logit_rows < tokens)).all()
        if self.limits is not None:
            assert tokens <= self.limits.max_tokens_per_step
            assert sequences <= self.limits.max_sequences
            assert (totals <= self.limits.max_context).all()
            chunk = self.limits.prefill_chunk
            assert chunk is None or (counts <= chunk).all()
            asked_for_prompts = len(step.logit_rows) - sequences
            assert asked_for_prompts <= self.limits.max_prompt_logit_rows

    def _check_sharing(self, step: StepInputs) -> None:
        """A block that one sequence writes is in no other's table; none is twice in one table."""
        written: list[int] = []
        held: list[int] = []
        for index, past in enumerate(step.past_lengths.tolist()):
            blocks = self._blocks(step, index).tolist()
            assert len(set(blocks)) == len(blocks)
            held += blocks
            written += blocks[past // self.block_size :]
        for block in written:
            assert held.count(block) == 1, f"block {block} is written by one and held by another"

    def _blocks(self, step: StepInputs, index: int) -> npt.NDArray[np.int32]:
        blocks: npt.NDArray[np.int32] = step.block_table[
            step.block_starts[index] : step.block_starts[index + 1]
        ]
        return blocks

    def _write(self, step: StepInputs, index: int) -> None:
        own = slice(step.sequence_starts[index], step.sequence_starts[index + 1])
        positions = step.positions[own]
        blocks = self._blocks(step, index)[positions // self.block_size]
        self.cache[blocks, positions % self.block_size] = step.token_ids[own]

    def _remember(self, step: StepInputs, index: int) -> None:
        own = slice(step.sequence_starts[index], step.sequence_starts[index + 1])
        kept = self.slots[step.sequence_slots[index]]
        if step.past_lengths[index] == 0:
            kept.clear()
        kept += step.token_ids[own].tolist()
        if self.state_bytes:
            assert len(kept) == step.past_lengths[index] + own.stop - own.start

    def _read(self, step: StepInputs, index: int, length: int) -> npt.NDArray[np.int64]:
        history = self.cache[self._blocks(step, index)].reshape(-1)[:length]
        assert (history != NEVER_WRITTEN).all(), "a token is read that was never computed"
        return history
