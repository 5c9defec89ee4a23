"""Encoder-decoders' cases as steps of a session, and what transformers makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from paddock.engines.protocol import Session
from paddock.graph import Array
from tests.models.encoder_decoder_cases import EncoderDecoderCase
from tests.models.play import step_inputs


@cache
def made(name: str) -> tuple[Path, Any, list[Array]]:
    """The case's checkpoint, transformers' model of it, and its logits."""
    from tests.models.transformers_encoder_decoder import logits, reference, save

    case = EncoderDecoderCase(name)
    model = reference(case)
    folder = Path(mkdtemp(prefix="encoder-decoder-"))
    save(case, model, folder)
    return folder, model, logits(case, model)


def play(
    session: Session, case: EncoderDecoderCase, plan: Sequence[Sequence[tuple[int, int]]]
) -> list[Array]:
    """Logits of each answer, [tokens, vocab]; the blocks are scattered, and were used before."""
    size, sources, answers = session.block_size, case.sources, case.answers
    blocks = case.random("blocks").permutation(
        sum(ceil(len(ids) / size) for ids in (*sources, *answers))
    )
    session.allocate_cache(len(blocks), len(blocks))
    free = [int(b) for b in blocks]
    of_sources = [[free.pop() for _ in range(ceil(len(ids) / size))] for ids in sources]
    of_answers = [[free.pop() for _ in range(ceil(len(ids) / size))] for ids in answers]
    soil = step_inputs(session, [(np.full(size, 5), 0, [of_answers[0][0]])], np.arange(1))
    dirt = np.zeros_like(sources[1][:1]) + 6
    session.run(_with_sources(soil, [dirt], [of_sources[1][:1]]))
    done = [0] * len(answers)
    found: list[list[Array]] = [[] for _ in answers]
    for step in plan:
        batch = [(answers[s][done[s] : done[s] + n], done[s], of_answers[s]) for s, n in step]
        inputs = step_inputs(session, batch, np.arange(sum(n for _, n in step)))
        own = [sources[s] for s, _ in step]
        rows = np.array(session.run(_with_sources(inputs, own, [of_sources[s] for s, _ in step])))
        ends = np.cumsum([n for _, n in step])[:-1]
        for (s, n), part in zip(step, np.split(rows, ends), strict=True):
            found[s].append(part)
            done[s] += n
    return [np.concatenate(parts) for parts in found]


def _with_sources(step: Any, sources: list[Array], blocks: list[list[int]]) -> Any:
    new = [
        source if past == 0 else source[:0]
        for source, past in zip(sources, step.past_lengths, strict=True)
    ]
    heard = new[0].ndim == 2
    return replace(
        step,
        source_ids=None if heard else np.concatenate(new).astype(np.int64),
        source_features=np.concatenate(new) if heard else None,
        source_positions=np.concatenate([np.arange(len(ids)) for ids in new]).astype(np.int64),
        source_starts=np.cumsum([0, *map(len, new)]).astype(np.int32),
        source_lengths=np.array([len(ids) for ids in sources], np.int32),
        source_table=np.array([b for own in blocks for b in own], np.int32),
        source_table_starts=np.cumsum([0, *map(len, blocks)]).astype(np.int32),
    )
