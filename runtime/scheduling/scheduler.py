"""Which tokens of which sequences run in the next step."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from paddock.runtime.images.prepared import content, within
from paddock.runtime.scheduling.block_pool import BlockPool
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.prefix_hash import PrefixHasher
from paddock.runtime.scheduling.rank_queue import Rank, RankQueue
from paddock.runtime.scheduling.request import Request, Sequence, State


class Chunk(NamedTuple):
    """A sequence's part of a step: as many of its tokens from `past` on."""

    sequence: Sequence
    past: int
    tokens: int
    samples: bool
    """The last of these tokens is the sequence's last: a next one is sampled after it."""
    first_prompt_row: int
    prompt_rows: int
    """Tokens whose logits are for prompt log-probabilities: this many from `first_prompt_row`
    (counted in the chunk) on."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One step: decode tokens first, then prompt chunks."""

    chunks: list[Chunk]
    tokens: int


@dataclass(slots=True)
class _Room:
    """What a step can still take."""

    tokens: int
    uncut: int  # tokens where a prompt cannot be cut: more than its share of them
    prompt_rows: int
    sources: int  # that came with the step so far
    images: int  # patches of images that came with it
    looks: int  # at waiting sequences, so that a step costs the same however many wait


@dataclass(slots=True)
class Counters:
    """What happened since the scheduler was made."""

    preemptions: int = 0
    prompt_tokens_admitted: int = 0  # tokens of admitted sequences, re-admissions included
    prompt_tokens_hit: int = 0  # those of them that were found in the cache


class Scheduler:
    """Admits, mixes, preempts.

    Everybody has a rank (see `Request.rank_time`), the same for admission and for preemption, and
    it never changes. The best-ranked running sequence is never preempted and gets its tokens in
    every step, so it finishes; hence every sequence does.

    Not thread-safe: one thread owns it.
    """

    def __init__(
        self,
        limits: Limits,
        block_size: int,
        hasher: PrefixHasher | None = None,
        *,
        reuse: bool = True,
    ) -> None:
        """`reuse`: sequences begin behind the blocks of their prefix that others have computed.

        Not so where layers keep a state of the whole sequence, which no block holds, and where
        what they keep of a token depends on a source.
        """
        self.limits = limits
        self.block_size = block_size
        self.reuse = reuse
        self.hasher = hasher or PrefixHasher(block_size)
        self.pool = BlockPool(limits.cache_blocks)
        self.counters = Counters()
        self.most_running = limits.max_sequences
        """Fewer after a step found no memory, until everything has run."""
        self.running: list[Sequence] = []  # by rank, best first
        self.waiting: RankQueue[Sequence] = RankQueue()
        context = min(limits.max_context, limits.cache_blocks * block_size)
        # Row s: the blocks of the sequence in slot s, as the step planner needs them.
        self.block_rows = np.zeros((limits.max_sequences, -(-context // block_size)), np.int32)
        self._slots = list(range(limits.max_sequences - 1, -1, -1))
        self._computing: dict[bytes, Sequence] = {}  # blocks of prompts that are being computed
        self._followers: dict[bytes, list[Sequence]] = {}
        self._following = 0
        # Who waits for blocks, and when it was seen: a long prompt is not looked up every step.
        self._blocked: tuple[Rank, int] | None = None

    @property
    def queued(self) -> int:
        """Sequences that wait, preempted ones included."""
        return len(self.waiting) + self._following

    @property
    def idle(self) -> bool:
        return not self.running and not self.queued

    def add(self, request: Request) -> None:
        """Queue a request's sequences."""
        for sequence in request.sequences:
            self.waiting.push(sequence.rank, sequence)

    @property
    def may_preempt(self) -> bool:
        """Whether the next `schedule` might preempt: false is certain."""
        if not self.running:
            return False
        first = self.waiting.first()
        urgent = first is not None and first[0] < self.running[-1].rank
        return urgent or self.pool.free < len(self.running)

    def schedule(self, *, parts: int = 1) -> Decision:
        """Decide the next step.

        Decode tokens first, one for each; then prompts, running and waiting, by rank. Costs
        O(running sequences), and what is admitted, preempted or sent to follow another. With
        `parts` it is one of so many steps that are on their way at once: no more decode than
        their share, and prompts take their share of `max_tokens_per_step`. So the first stage of
        a pipeline is done with the first of them after that share, and the next one can begin.
        """
        self._make_room_for_urgent()
        chunks: list[Chunk] = []
        decoding = sum(one.length - one.computed <= 1 for one in self.running)
        self._decode(chunks, -(-decoding // parts))
        most = self.limits.max_tokens_per_step
        uncut = most - len(chunks)
        room = _Room(
            # One at least, so that a prompt goes on however many decode.
            tokens=min(max(-(-most // parts) - len(chunks), 1), uncut),
            uncut=uncut,
            prompt_rows=self.limits.max_prompt_logit_rows,
            sources=0,
            images=0,
            looks=2 * self.limits.max_sequences,
        )
        prefilling = [one for one in self.running if one.length - one.computed > 1]
        for sequence in prefilling:
            self._admit(chunks, room, before=sequence.rank)
            self._prefill(chunks, room, sequence)
        self._admit(chunks, room, before=None)
        return Decision(chunks, sum(chunk.tokens for chunk in chunks))

    def commit(self, decision: Decision) -> None:
        """The step has run: its tokens are in the cache, and full blocks can be found."""
        self.advance(decision)
        self.register(decision)

    def advance(self, decision: Decision) -> None:
        """The step is on its way: the next one begins behind its tokens."""
        for chunk in decision.chunks:
            if chunk.sequence.state is State.RUNNING:
                chunk.sequence.computed = chunk.past + chunk.tokens

    def register(self, decision: Decision) -> None:
        """All tokens that went into the step are known: full blocks can be found."""
        size = self.block_size
        for chunk in decision.chunks:
            sequence = chunk.sequence
            if sequence.state is not State.RUNNING:
                continue
            # One that was preempted and admitted again meanwhile has computed less.
            known = min(chunk.past + chunk.tokens, sequence.computed)
            while self.reuse and (sequence.registered + 1) * size <= known:
                self._register_next_block(sequence)

    def preempt_worst(self) -> bool:
        """Run one sequence less, from now on: the worst-ranked waits. False where there is one."""
        if len(self.running) < 2:
            return False
        self._preempt(self.running[-1])
        self.most_running = len(self.running)
        return True

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever state it is in; its blocks are free at once."""
        if sequence.state is State.RUNNING:
            self._stop_running(sequence)
        elif sequence.state is State.WAITING:
            self.waiting.discard(sequence.rank)
        elif sequence.state is State.FOLLOWING:
            assert sequence.following is not None
            self._followers[sequence.following].remove(sequence)
            self._following -= 1
        sequence.state = State.FINISHED

    def audit(self) -> None:
        """Check every invariant; raises `AssertionError`. For tests and for diagnosis."""
        self.pool.audit(
            blocks
            for sequence in self.running
            for blocks in (sequence.blocks, sequence.source_blocks)
        )
        ranks = [sequence.rank for sequence in self.running]
        assert ranks == sorted(ranks), "running sequences are not in the order of rank"
        slots = [sequence.slot for sequence in self.running]
        assert sorted(slots + self._slots) == list(range(self.limits.max_sequences)), "slots leaked"
        for sequence in self.running:
            assert sequence.state is State.RUNNING
            assert len(sequence.blocks) * self.block_size >= sequence.computed
            row = self.block_rows[sequence.slot, : len(sequence.blocks)]
            assert row.tolist() == sequence.blocks, "a slot's row is not its sequence's blocks"
        for digest, owner in self._computing.items():
            assert owner.state is State.RUNNING, "nobody computes a block that others wait for"
            assert digest in owner.digests
        following = 0
        for digest, followers in self._followers.items():
            assert digest in self._computing, "a block is waited for that nobody computes"
            following += len(followers)
            assert all(follower.state is State.FOLLOWING for follower in followers)
        assert following == self._following
        assert all(sequence.state is State.WAITING for sequence in self.waiting.items())

    # --- decode -------------------------------------------------------------------------------

    def _decode(self, chunks: list[Chunk], most: int) -> None:
        """One token for each running sequence that is past its prompt, and at most so many.

        Best rank first; who needs a block and finds none takes it from the worst-ranked, which
        has no chunk yet because the loop has not come to it.
        """
        size = self.block_size
        position = 0
        while position < len(self.running) and len(chunks) < most:
            sequence = self.running[position]
            past = sequence.computed
            if sequence.length - past == 1 and not sequence.closing:
                if past == len(sequence.blocks) * size:
                    while not self.pool.free and self.running[-1] is not sequence:
                        self._preempt(self.running[-1])
                    if not self.pool.free:
                        self._preempt(sequence)
                        continue
                    self._give_blocks(sequence, self.pool.allocate(1))
                chunks.append(Chunk(sequence, past, 1, True, 0, 0))
            position += 1

    # --- prompts ------------------------------------------------------------------------------

    def _prefill(self, chunks: list[Chunk], room: _Room, sequence: Sequence) -> None:
        """The next part of a prompt (or of a preempted sequence), as long as the bounds allow."""
        past = sequence.computed
        most = room.uncut if sequence.request.images else room.tokens
        count = min(sequence.length - past, most, self.limits.prefill_chunk or most)
        first_row = prompt_rows = 0
        done = len(sequence.prompt_logprobs)
        if done < sequence.prompt_rows:
            first_row = done - past  # rows before it were reported before a preemption
            prompt_rows = min(past + count, sequence.prompt_rows) - done
            if prompt_rows > room.prompt_rows:
                prompt_rows = room.prompt_rows
                count = first_row + prompt_rows
            prompt_rows = max(prompt_rows, 0)
        if sequence.request.images:
            count = self._with_images(room, sequence, past, count)
            prompt_rows = max(min(prompt_rows, count - first_row), 0)
        if count <= 0:
            return
        samples = past + count == sequence.length
        chunks.append(Chunk(sequence, past, count, samples, first_row, prompt_rows))
        room.prompt_rows -= prompt_rows
        taken = count
        if not past and sequence.source_length:
            taken += sequence.source_length
            room.sources += 1
        room.tokens, room.uncut = max(room.tokens - taken, 0), max(room.uncut - taken, 0)

    def _with_images(self, room: _Room, sequence: Sequence, past: int, count: int) -> int:
        """How many of `count` tokens, with their images, the step can take.

        An image comes whole with every step that has a token of it. So that it is not computed
        twice, a chunk ends before an image that does not fit into it, unless it begins with it;
        and a step that has images takes no others beyond as many patches as it may have tokens.
        Where an image's tokens see each other, a chunk that begins with it has all of it, however
        short chunks are to be.
        """
        for image in within(sequence.request.images, past, past + count):
            patches = len(image.image.patches)
            full = room.images and room.images + patches > self.limits.max_tokens_per_step
            if image.image.whole and image.start <= past and not full:
                # The intake has seen to it that there is a step with so much room.
                count = max(count, image.stop - past)
                full = count > room.uncut
            if full or (image.stop > past + count and image.start > past):
                return max(image.start - past, 0)
            room.images += patches
        return count

    def _admit(self, chunks: list[Chunk], room: _Room, *, before: Rank | None) -> None:
        """Let waiting sequences in by rank, and stop at the first that has to wait.

        `before`: only those of better rank than this.

        A small request never overtakes a large one of better rank that waits for blocks: that
        would starve the large one. The exception costs nobody anything: a sequence whose prompt
        begins with blocks that a better-ranked one is just computing steps aside until they can
        be found in the cache.
        """
        while room.tokens and room.looks and self._slots and (first := self.waiting.first()):
            if len(self.running) >= self.most_running:
                break
            rank, sequence = first
            if before is not None and rank > before:
                break
            if not room.prompt_rows and len(sequence.prompt_logprobs) < sequence.prompt_rows:
                break
            if self._blocked == (rank, self.pool.changes):
                break
            # A source cannot be cut: one that no step has room for has one without others.
            if room.sources and sequence.source_length > room.uncut:
                break
            room.looks -= 1
            found = self.pool.find(sequence.digests[: self._findable(sequence)])
            if self._follow(sequence, len(found)):
                continue
            fresh = self._fresh_blocks(sequence, found)
            if fresh is None:
                self._blocked = (rank, self.pool.changes)
                break
            self.waiting.discard(rank)
            self._start_running(sequence, found, fresh)
            self._prefill(chunks, room, sequence)

    def _findable(self, sequence: Sequence) -> int:
        """How many leading blocks need not be computed if they are found.

        The last token has to run, for its logits are what the next one is sampled from; and so
        do the prompt's tokens whose log-probabilities are still to be reported.
        """
        if not self.reuse:
            return 0
        tokens = sequence.length - 1
        done = len(sequence.prompt_logprobs)
        if done < sequence.prompt_rows:
            tokens = done
        # The last digest may not be made yet, where a step is on its way.
        return min(tokens // self.block_size, len(sequence.digests))

    def _fresh_blocks(self, sequence: Sequence, found: list[int]) -> int | None:
        """How many blocks it needs beside those found; None: it has to wait.

        All its known tokens get their blocks on admission, so that chunks never fail half-way.
        Beside others one block for each of them is left, or it would be preempted at once.
        """
        fresh = -(-sequence.length // self.block_size) - len(found)
        fresh += self._source_blocks(sequence)
        revived = sum(self.pool.references(block) == 0 for block in found)
        return fresh if fresh + revived + len(self.running) <= self.pool.free else None

    def _source_blocks(self, sequence: Sequence) -> int:
        return -(-sequence.source_length // self.block_size)

    def _start_running(self, sequence: Sequence, found: list[int], fresh: int) -> None:
        self.pool.hold(found)
        sequence.computed = len(found) * self.block_size
        sequence.slot = self._slots.pop()
        sequence.state = State.RUNNING
        sequence.registered = len(found)
        self._give_blocks(sequence, found)
        sources = self._source_blocks(sequence)
        if sources:
            sequence.source_blocks = self.pool.allocate(sources)
        self._give_blocks(sequence, self.pool.allocate(fresh - sources))
        bisect.insort(self.running, sequence, key=_rank)
        for digest in self._to_compute(sequence):
            self._computing.setdefault(digest, sequence)
        self.counters.prompt_tokens_admitted += sequence.length
        self.counters.prompt_tokens_hit += sequence.computed

    def _stop_running(self, sequence: Sequence) -> None:
        for digest in self._to_compute(sequence):
            if self._computing.get(digest) is sequence:
                del self._computing[digest]
                self._wake_followers(digest)
        self.running.pop(bisect.bisect_left(self.running, sequence.rank, key=_rank))
        self._slots.append(sequence.slot)
        self.pool.release(sequence.blocks)
        if sequence.source_blocks:
            self.pool.release(sequence.source_blocks)
        sequence.slot = -1
        sequence.blocks, sequence.source_blocks = [], []
        sequence.computed = sequence.registered = 0

    def _to_compute(self, sequence: Sequence) -> Iterator[bytes]:
        """Digests of its full blocks that are not in the cache yet."""
        return iter(sequence.digests[sequence.registered :] if self.reuse else ())

    # --- blocks -------------------------------------------------------------------------------

    def _give_blocks(self, sequence: Sequence, blocks: list[int]) -> None:
        held = len(sequence.blocks)
        self.block_rows[sequence.slot, held : held + len(blocks)] = blocks
        sequence.blocks.extend(blocks)

    def _register_next_block(self, sequence: Sequence) -> None:
        index = sequence.registered
        if index == len(sequence.digests):
            parent = sequence.digests[-1] if index else sequence.request.root_digest
            begin, end = index * self.block_size, (index + 1) * self.block_size
            images = sequence.request.images
            beside = content(images, begin, end) if images else b""
            tokens = sequence.token_ids[begin:end]
            sequence.digests.append(self.hasher.block(parent, tokens, beside))
        digest = sequence.digests[index]
        self.pool.register(sequence.blocks[index], digest)
        sequence.registered = index + 1
        if self._computing.pop(digest, None) is not None:
            self._wake_followers(digest)

    # --- following ----------------------------------------------------------------------------

    def _leader(self, sequence: Sequence, found: int) -> Sequence | None:
        """Who is computing the continuation of what was found of its prompt.

        Only one of better rank: that one makes progress whenever this one would.
        """
        if found >= self._findable(sequence):
            return None
        owner = self._computing.get(sequence.digests[found])
        return owner if owner is not None and owner.rank < sequence.rank else None

    def _follow(self, sequence: Sequence, found: int) -> bool:
        """Let it wait until its leader, if it has one, has computed all that they share."""
        leader = self._leader(sequence, found)
        if leader is None:
            return False
        digests = sequence.digests
        end, findable = found + 1, self._findable(sequence)
        while end < findable and self._computing.get(digests[end]) is leader:
            end += 1
        digest = digests[end - 1]
        self.waiting.discard(sequence.rank)
        sequence.state = State.FOLLOWING
        sequence.following = digest
        self._followers.setdefault(digest, []).append(sequence)
        self._following += 1
        return True

    def _wake_followers(self, digest: bytes) -> None:
        for sequence in self._followers.pop(digest, ()):
            sequence.state = State.WAITING
            sequence.following = None
            self._following -= 1
            self.waiting.push(sequence.rank, sequence)

    # --- preemption ---------------------------------------------------------------------------

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue, at its old rank; its tokens stay, its keys and values may be found."""
        self._stop_running(sequence)
        sequence.state = State.WAITING
        sequence.preemptions += 1
        self.counters.preemptions += 1
        self.waiting.push(sequence.rank, sequence)

    def _make_room_for_urgent(self) -> None:
        """Preempt for the first in the queue where those running are of a less urgent priority."""
        first = self.waiting.first()
        if first is None or not self.running:
            return
        rank, sequence = first
        if self.running[-1].rank < rank:
            return
        urgent = sequence.request.priority
        victims = [
            victim
            for victim in self.running
            if victim.request.priority > urgent and victim.rank > rank
        ]
        if not victims:
            return
        found = self.pool.find(sequence.digests[: self._findable(sequence)])
        if self._leader(sequence, len(found)) is not None:
            return
        fresh = -(-sequence.length // self.block_size) - len(found)
        fresh += self._source_blocks(sequence)
        held = sum(len(victim.blocks) + len(victim.source_blocks) for victim in victims)
        if fresh > self.pool.free + held:
            return
        while victims and (not self._slots or self._fresh_blocks(sequence, found) is None):
            self._preempt(victims.pop())


def _rank(sequence: Sequence) -> tuple[float, float, float]:
    return sequence.rank
