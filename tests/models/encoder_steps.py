"""Encoders' cases as steps of a session, and what transformers makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from paddock.engines.protocol import Session, StepInputs
from paddock.graph import Array
from tests.models.encoder_cases import EncoderCase


@cache
def made(name: str) -> tuple[Path, list[Array]]:
    """The case's checkpoint, and what transformers makes of it."""
    from tests.models.transformers_encoder import outputs, reference, save

    case = EncoderCase(name)
    model = reference(case)
    folder = Path(mkdtemp(prefix="encoder-"))
    save(case, model, folder)
    return folder, outputs(case, model)


def whole_step(case: EncoderCase, order: Sequence[int], reads: str) -> StepInputs:
    """The case's sequences, in `order`, as one step; `reads`: which rows come back."""
    sequences = [case.sequences[i] for i in order]
    lengths = [len(ids) for ids in sequences]
    starts = np.cumsum([0, *lengths])
    rows = starts[:-1] if reads == "first" else np.arange(starts[-1])
    empty = np.zeros(len(order) + 1, np.int32)
    return StepInputs(
        token_ids=np.concatenate(sequences),
        positions=np.concatenate([np.arange(n) for n in lengths]).astype(np.int64),
        sequence_starts=starts.astype(np.int32),
        past_lengths=empty[1:],
        block_table=empty[:0],
        block_starts=empty,
        sequence_slots=np.arange(len(order), dtype=np.int32),
        logit_rows=rows.astype(np.int64),
        token_types=np.concatenate([case.token_types[i] for i in order]),
    )


def run(session: Session, case: EncoderCase, order: Sequence[int], reads: str) -> list[Array]:
    """Rows of each sequence, in the order of `order`."""
    step = whole_step(case, order, reads)
    rows = np.array(session.run(step))
    if reads == "first":
        return list(rows[:, None])
    return np.split(rows, step.sequence_starts[1:-1])
