"""Feed sequences to a session step by step, in blocks scattered over the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddock.engines.protocol import Session, StepInputs
from paddock.graph import Array

# Steps; a step is (sequence, how many of its tokens come next) for those that take part.
Plan = Sequence[Sequence[tuple[int, int]]]


def whole(lengths: Sequence[int]) -> Plan:
    """Every sequence in a step of its own."""
    return [[(s, n)] for s, n in enumerate(lengths)]


def together(lengths: Sequence[int]) -> Plan:
    """All sequences in one step."""
    return [list(enumerate(lengths))]


def decode(lengths: Sequence[int], prompt: int) -> Plan:
    """`prompt` tokens of each together, then one token of each at a time, as they last."""
    plan = [[(s, min(prompt, n)) for s, n in enumerate(lengths)]]
    for i in range(prompt, max(lengths)):
        plan.append([(s, 1) for s, n in enumerate(lengths) if i < n])
    return plan


def chunks(lengths: Sequence[int], random: np.random.Generator) -> Plan:
    """Chunks of random sizes; each step takes a random few of the sequences, in random order."""
    left = dict(enumerate(lengths))
    plan = []
    while left:
        count = random.integers(1, len(left) + 1)
        some = random.permutation(list(left))[:count]
        step = [(int(s), int(random.integers(1, min(left[s], 9) + 1))) for s in some]
        for s, n in step:
            left[s] -= n
            if not left[s]:
                del left[s]
        plan.append(step)
    return plan


def play(
    session: Session,
    sequences: Sequence[Array],
    plan: Plan,
    random: np.random.Generator,
    *,
    soil: bool = True,
) -> list[Array]:
    """Logits [tokens, vocab] of each sequence, f32.

    Blocks are handed out in random order, from a cache in which other sequences have left their
    keys and values (`soil`); the rows of a step's logits are asked for in random order.
    """
    size = session.block_size
    needed = [-(-len(ids) // size) for ids in sequences]
    spare = 3
    session.allocate_cache(sum(needed) + spare, sum(needed) + spare)
    free = [int(b) for b in random.permutation(sum(needed) + spare)]
    if soil:
        ids = random.integers(0, session.vocab_size, len(free) * size)
        session.run(step_inputs(session, [(ids, 0, free)], np.arange(1)))
    blocks: list[list[int]] = [[] for _ in sequences]
    done = [0] * len(sequences)
    logits = [np.full((len(s), session.vocab_size), np.nan, np.float32) for s in sequences]
    for step in plan:
        batch, owners = [], []
        for s, count in step:
            end = done[s] + count
            while len(blocks[s]) * size < end:
                blocks[s].append(free.pop())
            batch.append((sequences[s][done[s] : end], done[s], blocks[s]))
            owners += [(s, position) for position in range(done[s], end)]
            done[s] = end
        order = random.permutation(len(owners))
        rows = session.run(step_inputs(session, batch, order))
        for row, i in zip(rows, order, strict=True):
            s, position = owners[i]
            logits[s][position] = row
    assert all(not np.isnan(x).any() for x in logits)
    return logits


def step_inputs(
    session: Session, batch: Sequence[tuple[Array, int, Sequence[int]]], rows: Array
) -> StepInputs:
    """A step of (new token ids, tokens in the cache before them, all blocks) sequences.

    A sequence's slot is the number of its first block.
    """
    lengths = [len(ids) for ids, _, _ in batch]
    used = [blocks[: -(-(past + len(ids)) // session.block_size)] for ids, past, blocks in batch]
    positions = [np.arange(past, past + len(ids)) for ids, past, _ in batch]
    return StepInputs(
        token_ids=np.concatenate([ids for ids, _, _ in batch]).astype(np.int64),
        positions=np.concatenate(positions).astype(np.int64),
        sequence_starts=np.cumsum([0, *lengths]).astype(np.int32),
        past_lengths=np.array([past for _, past, _ in batch], np.int32),
        block_table=np.array([b for blocks in used for b in blocks], np.int32),
        block_starts=np.cumsum([0, *map(len, used)]).astype(np.int32),
        sequence_slots=np.array([blocks[0] for _, _, blocks in batch], np.int32),
        logit_rows=np.asarray(rows, np.int64),
    )


def relative_error(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest difference, relative to the largest expected magnitude."""
    scale = max(float(np.abs(e).max()) for e in expected)
    worst = max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True))
    return worst / scale
